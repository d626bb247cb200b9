"""A model as a folder: text tokenizer, image tokenizer, decoder, id space, defaults, card.

`model_index.json` names the parts as diffusers' pipelines do; `image/` opens in diffusers and `decoder/` in
transformers. `manifest.json` holds the size and SHA-256 of every file and is checked before anything is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from cm3kit.config import Settings
from cm3kit.decoders.diffusion.presets import presets
from cm3kit.decoders.diffusion.settings import CacheName, DiffusionConfig, Eoser
from cm3kit.decoders.settings import DecodeConfig, DecoderName
from cm3kit.fill.finding import INDEX as INDEX
from cm3kit.fill.finding import available as available
from cm3kit.fill.finding import find as find
from cm3kit.fill.finding import name_of
from cm3kit.fill.openers import find_foreign, try_out
from cm3kit.fill.styles import ChatTemplate, PictureMarks, PromptStyle
from cm3kit.fill.trained import Trained, written_in_place
from cm3kit.models.backbone import load_backbone
from cm3kit.models.gguf import gguf_file
from cm3kit.models.quantized import split_format
from cm3kit.objectives.contract import Use
from cm3kit.publish import publishing, verify
from cm3kit.renamed import old_names
from cm3kit.types import Attention
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.absent import NoPictures
from cm3kit_tokenizers.vq.model import ImageTokenizer

PARTS = {"text": "TextTokenizer", "image": "VQModel", "decoder": "CausalLM"}
DIFFUSION = "diffusion"


class DiffusionDefaults(Settings):
    """How a model writes in any order.

    Attributes:
        image: settings of canvases on which there are only pictures to write, `text` of those with only text, and
            `mixed` of all others.
        shift: whether the model scores each position at the one before it.
        isolated_masks: whether masked positions are seen by themselves alone, as in training.
        trained_block: positions of a block, for a model that was trained block by block.
        trained_cache: the cache that such a training makes exact.
        layout: where answers go; see `layouts`.
        objective: name and settings of the objective that scores it in validation.
    """

    image: DiffusionConfig = presets["cosine"].config(eoser=Eoser())
    text: DiffusionConfig = presets["uniform"].config(eoser=Eoser())
    mixed: DiffusionConfig = presets["uniform"].config(eoser=Eoser())
    shift: bool = False
    isolated_masks: bool = False
    trained_block: int | None = Field(None, ge=1)
    trained_cache: CacheName = "none"
    layout: str = "in-place"
    objective: dict[str, Any] = Field(default_factory=lambda: {"name": "masked-diffusion"})

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "trained_cache" in given:
            return given
        told = written_in_place(given)
        own = {"trained_cache": told["cache"], "objective": told["objective"], "layout": told["layout"]}
        # What is given counts as set, and what follows from that too.
        own = own if {"layout", "trained_block"} & set(given) else {}
        renamed = {"isolated_masks" if key == "unseen" else key: value for key, value in given.items()}
        return {**renamed, **own}


class Defaults(Settings):
    """How a model is used unless the user says otherwise.

    Attributes:
        window: the longest sequence that the decoder was trained on.
        preset: the causal objective's.
        hints: whether the cm3 decoder was trained with size hints, and gets the sizes that pages wish for.
        layout: where the cm3 decoder's answers go, but for pictures and pages from words; see `layouts`.
        prompt_attention: whether the cm3 decoder's known ids look left, or at one another.
        objective: name and settings of the objective that scores the cm3 decoder in validation.
        decoders: those that the model was trained for; the first one writes unless another is asked for.
        image: settings of the cm3 decoder for pictures, and `text` those for words.
        diffusion: settings of the diffusion decoder, where it is one of `decoders`.
        prompt_style: how pages are put to the model; other than minimal for public models of text, whose weights stay
            in the number format of their files.
        chat: how a conversation is written.
        pictures: how a public model writes pictures among words; None of one of words alone.
    """

    window: int = Field(512, ge=16)
    preset: str = "recommended"
    hints: bool = False
    layout: str = "behind"
    prompt_attention: Attention = "causal"
    objective: dict[str, Any] = Field(default_factory=dict)
    decoders: tuple[DecoderName, ...] = Field(("cm3",), min_length=1)
    image: DecodeConfig = DecodeConfig()
    text: DecodeConfig = DecodeConfig()
    diffusion: DiffusionDefaults = DiffusionDefaults()
    prompt_style: PromptStyle = "minimal"
    chat: ChatTemplate | None = None
    pictures: PictureMarks | None = None

    @classmethod
    def of(cls, folder: Path) -> Defaults:
        """Those of a model folder, under whatever names they were written.

        Raises:
            OSError: there is no `defaults.json`.
            ValidationError: it cannot be used.
        """
        with old_names():
            return cls.model_validate_json((folder / "defaults.json").read_text(encoding="utf-8"))

    @model_validator(mode="after")
    def _diffusion_is_used(self) -> Defaults:
        if self.diffusion != DiffusionDefaults() and DIFFUSION not in self.decoders:
            raise ValueError("diffusion is set, but decoders does not name it")
        return self


@dataclass(frozen=True)
class Parts:
    """What a model folder holds, loaded; a diffusion decoder of its own is not (`diffusion_backbone`)."""

    name: str
    folder: Path
    text: TextTokenizer
    image: ImageTokenizer
    vocab: Vocab
    backbone: PreTrainedModel
    defaults: Defaults

    @property
    def public(self) -> bool:
        """Whether it is a public model, which has never seen minimal HTML."""
        return self.defaults.prompt_style != "minimal"


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
    dtype: Any = "auto" if public else torch.float32
    backbone = load_backbone(folder / "decoder", len(vocab), dtype=dtype, quantize=quantize)
    try_out(backbone, folder, defaults)
    name = name_of(folder) if quantize is None else f"{name_of(folder)}:{quantize}"
    return Parts(name, folder, text, image, vocab, backbone, defaults)


def own_diffusion(parts: Parts) -> bool:
    """Whether the diffusion decoder has weights of its own."""
    return DIFFUSION in parts.defaults.decoders and (parts.folder / DIFFUSION).is_dir()


def diffusion_backbone(parts: Parts) -> PreTrainedModel:
    """The weights of the diffusion decoder: its own, read now, or those of both decoders.

    Raises:
        ModelError: a tensor is missing, extra or mis-shaped (`bad_checkpoint`).
    """
    return (
        load_backbone(parts.folder / DIFFUSION, len(parts.vocab)) if own_diffusion(parts) else parts.backbone
    )


def count_parameters(folder: Path) -> int:
    """Numbers in the weight files of a folder, by their headers.

    Raises:
        ModelError: a file cannot be read (`bad_checkpoint`).
    """
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read: {error}.", code="bad_checkpoint") from error
    return total


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
    target: Path, text: Path, image: Path, decoder: Path, defaults: Defaults, card: str,
    diffusion: Path | None = None, copy: Callable[[str, str], object] = shutil.copy2,
) -> Path:  # fmt: skip
    """Publish a model folder from trained parts.

    Args:
        defaults: what they do not set is as the decoders were trained, where these say so.
        diffusion: folder of a decoder that writes in place; unless given, `decoder` does what it was trained for.
        copy: how each file of a part comes there.

    Raises:
        OutputError: the folder exists, or the disk is full.
        ModelError: the parts do not fit one another.
    """
    vocab = Vocab(TextTokenizer.load(text).size, ImageTokenizer.load(image).size)
    sources, index = {"text": text, "image": image, "decoder": decoder}, dict(PARTS)
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
