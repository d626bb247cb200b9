"""The reward `judged`: whether a picture shows the named thing, by a fixed feature or by a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image
from pydantic import model_validator
from torch import Tensor

from cm3kit.evaluation.judge import SIZE, Judge
from cm3kit.evaluation.retrieval import Index, features
from cm3kit.json_lines import numbered_objects
from cm3kit.training.rl.rewards import RewardContext, RewardSettings, Sample, reward
from cm3kit_tokenizers.errors import ConfigError, DataError


class JudgedSettings(RewardSettings):
    """`reference` is a corpus of named pictures, or a JSON-lines file of rows with `name` and `picture` (a path beside
    it); `classifier` the folder of a `cm3kit.evaluation.judge`. One of them judges.

    `score` is 1 / (1 + how many others the picture resembles more) (`rank`), whether that is none (`top1`) or under
    five (`top5`), or the classifier's probability.
    """

    reference: Path | None = None
    classifier: Path | None = None
    score: Literal["rank", "top1", "top5", "probability"] = "rank"

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.reference is None) == (self.classifier is None):
            raise ValueError("give either reference or classifier")
        if self.score == "probability" and self.classifier is None:
            raise ValueError("score = probability needs a classifier")
        return self


@reward("judged")
class Judged:
    """The score of the picture for the name; 0 for no picture, None for a name that is not known.

    The name is the column `name` of the prompt's row, else the prompt.
    """

    Settings: ClassVar[type[RewardSettings]] = JudgedSettings

    def __init__(self, settings: Any, context: RewardContext) -> None:
        self._score = settings.score
        self._index = Reference.read(settings.reference) if settings.reference is not None else None
        self._judge: Judge | None = None
        if settings.classifier is not None:
            if not (settings.classifier / "judge.json").is_file():
                raise ConfigError(
                    f"classifier = {settings.classifier}: it holds no judge.json; train one with"
                    " benchmarks/judge.py.",
                    code="no_file",
                )
            self._judge = Judge.load(settings.classifier)
        known = self._index.names if self._index is not None else self._judge.names if self._judge else ()
        self._known = set(known)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[float | None]:
        """See `Reward`."""
        names = [str(each.meta.get("name", each.prompt)) for each in samples]
        out: list[float | None] = [0.0 if name in self._known else None for name in names]
        asked = [at for at, each in enumerate(samples) if each.image is not None and out[at] is not None]
        images = [image for at in asked if (image := samples[at].image) is not None]
        if asked:
            for at, value in zip(asked, self._values(images, [names[at] for at in asked]), strict=True):
                out[at] = value
        return out

    def _values(self, images: Sequence[Image.Image], names: list[str]) -> list[float]:
        if self._index is not None:
            ranks = self._index.ranks(pixels_of(images), names)
        elif self._judge is not None and self._score == "probability":
            return self._judge.probabilities(pixels_of(images), names)
        else:
            assert self._judge is not None
            ranks = self._judge.ranks(pixels_of(images), names)
        if self._score == "rank":
            return [1 / (1 + rank) for rank in ranks]
        return [float(rank < (5 if self._score == "top5" else 1)) for rank in ranks]


def pixels_of(images: Sequence[Image.Image]) -> Tensor:
    """Pictures over white at the size that they are judged at, uint8 (B, 3, H, W)."""
    found = []
    for each in images:
        front = each.convert("RGBA").resize((SIZE, SIZE))
        over = Image.alpha_composite(Image.new("RGBA", front.size, "white"), front).convert("RGB")
        found.append(torch.from_numpy(np.array(over)).permute(2, 0, 1))
    return torch.stack(found)


class Reference:
    """Pictures by name, several of a name if need be, in the fixed feature of `evaluation.retrieval`."""

    def __init__(self, names: Sequence[str], pixels_NCHW: Tensor) -> None:
        self.names = tuple(names)
        index = Index.build(names, pixels_NCHW)
        self._scale_D, self._features_ND = index.scale_D, index.features_ND / index.scale_D
        self._numbers: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            self._numbers.setdefault(name, []).append(number)

    def ranks(self, pixels_BCHW: Tensor, names: Sequence[str]) -> list[int]:
        """How many pictures of other names are nearer than the nearest of the own name; exact twins of it are not."""
        distances_BN = torch.cdist(features(pixels_BCHW) / self._scale_D, self._features_ND)
        out = []
        for name, distances_N in zip(names, distances_BN, strict=True):
            own = self._numbers[name]
            nearer_N = distances_N < distances_N[own].min() - 1e-4
            out.append(int(nearer_N.sum() - nearer_N[own].sum()))
        return out

    @classmethod
    def read(cls, path: Path) -> Reference:
        """The pictures of a corpus, or of a JSON-lines file.

        Raises:
            DataError: it, or a picture that it names, cannot be read (`bad_data`).
        """
        try:
            named = list(_listed(path))
            names = [name for name, _ in named]
            pixels_NCHW = torch.cat([pixels_of([_opened(picture)]) for _, picture in named])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            line = " ".join(str(error).split())[:160]
            raise DataError(
                f"reference = {path}: it is no corpus, and no list of rows with name and picture: {line}.",
                code="bad_data",
            ) from error
        return cls(names, pixels_NCHW)


def _listed(path: Path) -> Iterator[tuple[str, Path]]:
    """Names and pictures of a dictionary (`entries.jsonl`), of one by many artists (`pictures.jsonl`), or of a list."""
    if path.is_file():
        for row in _rows(path):
            yield str(row["name"]), path.parent / str(row["picture"])
    elif (path / "entries.jsonl").is_file():
        for row in _rows(path / "entries.jsonl"):
            yield str(row["name"]), path / "pictures" / f"{row['slug']}.png"
    else:
        things = {row["slug"]: str(row["name"]) for row in _rows(path / "things.jsonl")}
        for row in _rows(path / "pictures.jsonl"):
            if row["slug"] in things:
                yield things[row["slug"]], path / str(row["file"])


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in numbered_objects(path.read_bytes(), path)]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGBA")
