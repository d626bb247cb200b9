"""A model as a folder: text tokenizer, image tokenizer, decoder, id space, defaults, card.

`model_index.json` names the parts as diffusers' pipelines do; `image/` opens in diffusers and `decoder/` in
transformers. `manifest.json` holds the size and SHA-256 of every file and is checked before anything is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from cm3kit.fill.defaults import DIFFUSION, Defaults, DiffusionDefaults
from cm3kit.fill.openers import find_foreign, try_out
from cm3kit.fill.parts import Parts
from cm3kit.fill.runs import INDEX, name_of
from cm3kit.fill.trained import Trained
from cm3kit.models.backbone import load_backbone
from cm3kit.models.gguf import gguf_file
from cm3kit.models.plain import LateModel, read_plain
from cm3kit.models.quantized import Format, split_format
from cm3kit.objectives.contract import Use
from cm3kit.publish import publishing, verify
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.absent import NoPictures
from cm3kit_tokenizers.vq.model import ImageTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


PARTS = {"text": "TextTokenizer", "image": "VQModel", "decoder": "CausalLM"}


def load_parts(folder: Path) -> Parts:
    """Open every part of a model folder, or a folder of a public family as it was downloaded.

    Raises:
        ModelError: a file is missing or damaged, or a tensor is missing, extra or mis-shaped (`bad_checkpoint`).
        ConfigError: the format that a name asks for cannot be had here.
    """
    given, (base, quantize) = folder, split_format(str(folder))
    folder = Path(base)
    if not (folder / INDEX).is_file() and not (folder / "defaults.json").is_file():
        if foreign := find_foreign(str(folder)):
            return foreign[0].open(given)
    if (folder / "manifest.json").is_file() and (wrong := verify(folder)) is not None:
        raise ModelError(f"{folder} is damaged: {wrong}; fetch it again.", code="bad_checkpoint")
    try:
        vocab = Vocab.from_dict(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
        defaults = Defaults.of(folder)
    except (OSError, RecursionError, ValueError, KeyError, ValidationError) as error:
        line = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder}: vocab.json or defaults.json is unusable: {line}.", code="bad_checkpoint"
        ) from error
    text = TextTokenizer.load(folder / "text")
    image = ImageTokenizer.load(folder / "image") if vocab.image_size else NoPictures()
    if (text.size, image.size) != (vocab.text_size, vocab.image_size):
        raise ModelError(
            f"{folder}: the id space has {vocab.text_size} text ids and {vocab.image_size} codes, the tokenizers"
            f" {text.size} and {image.size}; the parts are of different models.",
            code="bad_checkpoint",
        )
    public = defaults.prompt_style != "minimal"
    if quantize and not public:
        raise ModelError(
            f"{given}: formats are for public models; use --precision for one that was trained here.",
            code="bad_checkpoint",
        )
    decoder = _decoder(folder, defaults, len(vocab), quantize)
    name = name_of(folder) if quantize is None else f"{name_of(folder)}:{quantize}"
    return Parts(name, folder, text, image, vocab, decoder, defaults)


def _decoder(
    folder: Path, defaults: Defaults, vocab_size: int, quantize: Format | None
) -> PreTrainedModel | LateModel:
    """The decoder of a model folder; a plain one that was trained here as its weights."""
    public = defaults.prompt_style != "minimal"
    if not public and (plain := read_plain(folder / "decoder", vocab_size)) is not None:
        return LateModel(plain, lambda: load_backbone(folder / "decoder", vocab_size))
    dtype: Any = "auto" if public else torch.float32
    backbone = load_backbone(folder / "decoder", vocab_size, dtype=dtype, quantize=quantize)
    try_out(backbone, folder, defaults)
    return backbone


def as_trained(defaults: Defaults, decoder: Trained | None, diffusion: Trained | None = None) -> Defaults:
    """The defaults with what they leave open filled in from the uses that the decoders were trained for.

    Args:
        decoder: of the model's decoder.
        diffusion: of weights that are for the diffusion decoder alone.
    """
    found: dict[str, Any] = {}
    windows = [each.window for each in (decoder, diffusion) if each is not None and each.window is not None]
    if windows:
        found["window"] = min(windows)
    if decoder is not None:
        found["decoders"] = decoder.decoders
        if (causal := decoder.of("cm3")) is not None:
            found |= {"hints": causal.hints, "layout": causal.layout, "prompt_attention": causal.attention}
            found |= {"preset": causal.preset, "objective": causal.objective}
    own = {name: value for name, value in found.items() if name not in defaults.model_fields_set}
    defaults = defaults.model_copy(update=own)
    trained = diffusion or decoder
    use = trained.of(DIFFUSION) if trained else None
    if use is None or not (diffusion or DIFFUSION in defaults.decoders):
        return defaults
    return defaults.model_copy(update={"diffusion": _diffusion_as_trained(defaults.diffusion, use)})


def _diffusion_as_trained(chosen: DiffusionDefaults, use: Use) -> DiffusionDefaults:
    found: dict[str, Any] = {
        "shift": use.shift, "isolated_masks": use.isolated_masks, "trained_block": use.block_size,
        "trained_cache": use.cache, "layout": use.layout, "objective": use.objective,
    }  # fmt: skip
    if use.block_size is not None:
        how = {"cache": use.cache, "block_size": use.block_size}
        for name in ("image", "text", "mixed"):
            found[name] = getattr(chosen, name).model_copy(update=how)
    own = {name: value for name, value in found.items() if name not in chosen.model_fields_set}
    return chosen.model_copy(update=own)


def assemble(
    target: Path, text: Path, image: Path | None, decoder: Path, defaults: Defaults, card: str,
    diffusion: Path | None = None, copy: Callable[[str, str], object] = shutil.copy2,
) -> Path:  # fmt: skip
    """Publish a model folder from trained parts.

    Args:
        image: None is a model of words alone.
        defaults: what they do not set is as the decoders were trained, where these say so.
        diffusion: folder of a decoder that writes in place; unless given, `decoder` does what it was trained for.
        copy: how each file of a part comes there.

    Raises:
        OutputError: the folder exists, or the disk is full.
        ModelError: the parts do not fit one another.
    """
    vocab = Vocab(TextTokenizer.load(text).size, 0 if image is None else ImageTokenizer.load(image).size)
    sources = {"text": text, "decoder": decoder} | ({} if image is None else {"image": image})
    index = {name: kind for name, kind in PARTS.items() if name in sources}
    defaults = as_trained(defaults, Trained.load(decoder), Trained.load(diffusion) if diffusion else None)
    if diffusion is not None:
        sources[DIFFUSION], index[DIFFUSION] = diffusion, PARTS["decoder"]
        named = dict.fromkeys((*defaults.decoders, DIFFUSION))
        defaults = Defaults.model_validate({**defaults.model_dump(), "decoders": tuple(named)})
    for name in ("decoder", DIFFUSION):
        if name in sources:
            load_backbone(sources[name], len(vocab))
    with publishing(target) as folder:
        for name, source in sources.items():
            unwanted = shutil.ignore_patterns("manifest.json")
            shutil.copytree(source, folder / name, ignore=unwanted, copy_function=copy)
        write_json(folder / "vocab.json", vocab.to_dict())
        unused = set() if DIFFUSION in defaults.decoders else {DIFFUSION}
        optional = ("hints", "layout", "prompt_attention", "objective", "prompt_style", "chat", "pictures")
        unused |= {name for name in optional if getattr(defaults, name) == getattr(Defaults(), name)}
        write_json(folder / "defaults.json", defaults.model_dump(mode="json", exclude=unused))
        write_json(folder / INDEX, {"_class_name": "Cm3Pipeline", "_cm3kit_format": 1, **index})
        (folder / "README.md").write_text(card, encoding="utf-8")
    return target


def read_card(path: Path | None) -> str:
    """The text of a model card; ModelError (`no_file`) if it cannot be read."""
    if path is None:
        return "# A model made with cm3kit\n"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read as a card: {error}.", code="no_file") from error


def fingerprints(folder: Path) -> dict[str, str]:
    """SHA-256 of each weight and tokenizer file, by its path in the folder."""
    if (file := gguf_file(str(folder))) is not None:
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    found = (path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    parts = (path for path in found if not str(path.relative_to(folder)).startswith("."))
    files = sorted(path for path in parts if path.name != "manifest.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file of the folder."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
