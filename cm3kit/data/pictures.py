"""Pictures of a corpus in memory, drawn by weight."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

from cm3kit.data.corpus import SHIPPED
from cm3kit.data.dictionary import Entry, load_entries
from cm3kit.data.prepared import PICTURES, is_prepared
from cm3kit.json_lines import numbered_objects
from cm3kit_tokenizers.errors import DataError
from cm3kit_tokenizers.vq.model import ImageTokenizer

LISTED = "pictures.jsonl"
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


@dataclass(frozen=True)
class PictureSet:
    """Pictures at one size: `pixels_BCHW` uint8, their drawing weights (0 = held out) and names."""

    pixels_BCHW: Tensor
    weights_B: Tensor
    names: tuple[str, ...]
    entries: tuple[Entry, ...] = ()

    def draw(self, rng: Generator, size: int) -> Tensor:
        """`size` pictures, drawn by weight."""
        return self.pixels_BCHW[self.pick(rng, size)]

    def pick(self, rng: Generator, size: int) -> Tensor:
        """Indices of `size` pictures, drawn by weight."""
        return torch.multinomial(self.weights_B, size, replacement=True, generator=rng)

    def fingerprint(self) -> str:
        """A hash of names, weights and size."""
        known = [self.names, self.weights_B.tolist(), list(self.pixels_BCHW.shape)]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]

    def held_out(self, count: int | None) -> Tensor:
        """The first `count` held-out pictures (all for None), or the first pictures if none is held out."""
        held = (self.weights_B == 0).nonzero()[:, 0]
        if not len(held):
            return self.pixels_BCHW[: count or len(self.pixels_BCHW)]
        step = max(1, len(held) // count) if count else 1
        return self.pixels_BCHW[held[::step][:count]]


def load_pictures(folder: Path, tokenizer: ImageTokenizer) -> PictureSet:
    """Pictures of a corpus with its splits and weights, or of any folder, of which one in 20 is held out.

    A corpus lists its pictures in `pictures.jsonl` (file, split, weight), or has `entries.jsonl` of the dictionary.
    """
    if (folder / LISTED).is_file():
        entries = []
        rows = _listed(folder / LISTED)
        paths = [folder / row["file"] for row in rows]
        weights = [float(row["weight"]) if row["split"] == "train" else 0.0 for row in rows]
        names = tuple(row["file"] for row in rows)
    elif (folder / "entries.jsonl").is_file():
        entries = load_entries(folder)
        paths = [folder / "pictures" / f"{entry.slug}.png" for entry in entries]
        weights = [entry.weight if entry.split == "train" else 0.0 for entry in entries]
        names = tuple(entry.name for entry in entries)
    else:
        entries = []
        inside = folder / PICTURES if is_prepared(folder) else folder
        paths = sorted(path for path in inside.rglob("*") if path.suffix.lower() in SUFFIXES)
        weights = [0.0 if index % 20 == 10 else 1.0 for index in range(len(paths))]
        names = tuple(path.stem for path in paths)
    if not any(weights):
        raise DataError(f"{folder} {_lacking(folder)}", code="bad_data")
    pixels_BCHW = torch.cat([tokenizer.pixels([_open(path)]) for path in paths])
    return PictureSet(pixels_BCHW, torch.tensor(weights), names, tuple(entries))


def _lacking(folder: Path) -> str:
    """Why a folder has no pictures, and what to do about it."""
    if folder == SHIPPED:
        return "is not there; name your own folder of pictures (--set data=FOLDER), or build that of emoji: make data."
    if not folder.is_dir():
        return "is no folder; name one of pictures: --set data=FOLDER."
    return f"holds no pictures ({', '.join(sorted(SUFFIXES))}) to train on."


def _listed(path: Path) -> list[dict[str, Any]]:
    rows = [row for _, row in numbered_objects(path.read_bytes(), path)]
    try:
        for row in rows:
            row["file"], row["split"], float(row["weight"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} has a line that is not a picture with split and weight.", code="bad_data"
        ) from error
    return rows


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            rgba = picture.convert("RGBA")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} is not a readable picture: {error}.", code="bad_picture") from error
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
