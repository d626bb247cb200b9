"""A model as a folder: text tokenizer, image tokenizer, decoder, id space, defaults, card.

`model_index.json` names the parts as diffusers' pipelines do; `image/` opens in diffusers and `decoder/` in
transformers. `manifest.json` holds the size and SHA-256 of every file and is checked before anything is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from transformers import PreTrainedModel

from cm3kit.config import Settings
from cm3kit.decoders.settings import DecodeConfig
from cm3kit.models.backbone import load_backbone
from cm3kit.publish import publishing, verify
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer

INDEX = "model_index.json"
PARTS = {"text": "TextTokenizer", "image": "VQModel", "decoder": "CausalLM"}
ENVIRONMENT, DEFAULT = "CM3KIT_MODEL", "emoji"


class Defaults(Settings):
    """How a model is used unless the user says otherwise.

    `window` is the longest sequence that the decoder was trained on; `preset` the objective's.
    """

    window: int = Field(512, ge=16)
    preset: str = "recommended"
    image: DecodeConfig = DecodeConfig()
    text: DecodeConfig = DecodeConfig()


@dataclass(frozen=True)
class Parts:
    """What a model folder holds, loaded."""

    name: str
    folder: Path
    text: TextTokenizer
    image: ImageTokenizer
    vocab: Vocab
    backbone: PreTrainedModel
    defaults: Defaults


def shelves() -> tuple[Path, ...]:
    """Folders whose sub-folders are models known by name."""
    package = Path(__file__).resolve().parents[1]
    return tuple(path for path in (package / "checkpoints", package.parent / "checkpoints") if path.is_dir())


def available() -> list[str]:
    """Names of the models that ship."""
    return sorted({path.parent.name for shelf in shelves() for path in shelf.glob(f"*/{INDEX}")})


def find(name: str | Path | None) -> Path:
    """The folder of a model by name or path; unless given, `CM3KIT_MODEL` or the default.

    Raises:
        ModelError: there is none (`unknown_model`), with the nearest name.
    """
    wanted = str(name or os.environ.get(ENVIRONMENT) or DEFAULT)
    for folder in (*(shelf / wanted for shelf in shelves()), Path(wanted)):
        if (folder / INDEX).is_file():
            return folder
    near = get_close_matches(wanted, available(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(available()) or 'none'}."
    raise ModelError(
        f"no model {wanted!r}: neither a known name nor a folder with {INDEX}; {hint}", code="unknown_model"
    )


def load_parts(folder: Path) -> Parts:
    """Open every part of a model folder.

    Raises:
        ModelError: a file is missing or damaged, or a tensor is missing, extra or mis-shaped (`bad_checkpoint`).
    """
    if (folder / "manifest.json").is_file() and (wrong := verify(folder)) is not None:
        raise ModelError(f"{folder} is damaged: {wrong}; fetch it again.", code="bad_checkpoint")
    try:
        vocab = Vocab.from_dict(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
        defaults = Defaults.model_validate_json((folder / "defaults.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, ValidationError) as error:
        line = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder}: vocab.json or defaults.json is unusable: {line}.", code="bad_checkpoint"
        ) from error
    text, image = TextTokenizer.load(folder / "text"), ImageTokenizer.load(folder / "image")
    if (text.size, image.size) != (vocab.text_size, vocab.image_size):
        raise ModelError(
            f"{folder}: the id space has {vocab.text_size} text ids and {vocab.image_size} codes, the tokenizers"
            f" {text.size} and {image.size}; the parts are of different models.",
            code="bad_checkpoint",
        )
    backbone = load_backbone(folder / "decoder", len(vocab))
    return Parts(folder.name, folder, text, image, vocab, backbone, defaults)


def assemble(target: Path, text: Path, image: Path, decoder: Path, defaults: Defaults, card: str) -> Path:
    """Publish a model folder from trained parts.

    Raises:
        OutputError: the folder exists, or the disk is full.
        ModelError: the parts do not fit one another.
    """
    vocab = Vocab(TextTokenizer.load(text).size, ImageTokenizer.load(image).size)
    load_backbone(decoder, len(vocab))
    with publishing(target) as folder:
        for name, source in (("text", text), ("image", image), ("decoder", decoder)):
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("manifest.json"))
        _write(folder / "vocab.json", vocab.to_dict())
        _write(folder / "defaults.json", defaults.model_dump(mode="json"))
        _write(folder / INDEX, {"_class_name": "Cm3Pipeline", "_cm3kit_format": 1, **PARTS})
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
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "manifest.json"
    }


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
