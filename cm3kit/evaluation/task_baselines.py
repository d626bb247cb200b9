"""What answers a task without a model: each learns from the known rows alone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image as Pillow

from cm3kit.evaluation.retrieval import features
from cm3kit.evaluation.task_metrics import Prediction, opened
from cm3kit.evaluation.task_rows import TaskData, TaskRow
from cm3kit.registry import Registry
from cm3kit.rng import stream
from cm3kit_tokenizers.errors import ConfigError

Answerer = Callable[[TaskRow], Prediction]
baseline: Registry[Callable[[TaskData], Answerer]] = Registry("baseline")


@baseline("chance")
def chance(data: TaskData) -> Answerer:
    """One of the candidates; or else the answer, or the picture, of some other row."""
    rows = data.rows

    def answer(row: TaskRow) -> Prediction:
        if row.candidates is not None:
            return Prediction(choices=dict.fromkeys(row.candidates, 1 / max(1, len(row.candidates))))
        others = [each for each in (rows[stream(1, row.number) % len(rows)], *rows[:2]) if each is not row]
        other = others[0] if others else row
        return _of(data, other) if others else Prediction(text="")

    return answer


@baseline("most-common")
def most_common(data: TaskData) -> Answerer:
    """The most frequent answer of the known rows."""
    counts = Counter(row.right for row in _known(data, "most-common"))
    best = min(counts, key=lambda each: (-counts[each], each))
    return lambda row: Prediction(text=best)


@baseline("lead-1")
def lead_one(data: TaskData) -> Answerer:
    """The first sentence of the row's `text`."""

    def answer(row: TaskRow) -> Prediction:
        text = _field(data, row, "text").split("\n")[0]
        return Prediction(text=re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0])

    return answer


@baseline("anchor-prior")
def anchor_prior(data: TaskData) -> Answerer:
    """The title that known pages link the row's `mention` to most often; none where it is unknown."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in _known(data, "anchor-prior"):
        counts[_field(data, row, "mention")][row.right] += 1

    def answer(row: TaskRow) -> Prediction:
        found = counts.get(_field(data, row, "mention"), Counter())
        best = min(found, key=lambda each: (-found[each], each), default=None)
        return Prediction(choices={} if best is None else {best: 1.0})

    return answer


@baseline("suffix-candidates")
def suffix_candidates(data: TaskData) -> Answerer:
    """The shortest candidate that ends in the row's `mention`."""

    def answer(row: TaskRow) -> Prediction:
        mention = _field(data, row, "mention").removesuffix("()")
        ending = [each for each in row.named if each.endswith(mention)]
        best = min(ending, key=lambda each: (len(each), each), default=None)
        return Prediction(choices={} if best is None else {best: 1.0})

    return answer


@baseline("nearest-picture")
def nearest_picture(data: TaskData) -> Answerer:
    """The answer of the known row whose picture is nearest (`evaluation.retrieval`)."""
    known = _known(data, "nearest-picture")
    kept_ND = features(torch.stack([opened(data, row) for row in known]))
    scale_D = kept_ND.std(0).clamp_min(1e-6)

    def answer(row: TaskRow) -> Prediction:
        asked_1D = features(opened(data, row)[None])
        place = int(torch.cdist(asked_1D / scale_D, kept_ND / scale_D)[0].argmin())
        return Prediction(text=known[place].right)

    return answer


@baseline("nearest-words")
def nearest_words(data: TaskData) -> Answerer:
    """The picture of the known row whose `name` shares most words with the row's (Jaccard index)."""
    known = [(_words(data, row), row) for row in _known(data, "nearest-words")]

    def answer(row: TaskRow) -> Prediction:
        mine = _words(data, row)
        return _of(data, max(known, key=lambda each: len(each[0] & mine) / max(1, len(each[0] | mine)))[1])

    return answer


def _words(data: TaskData, row: TaskRow) -> set[str]:
    return set(re.findall(r"\w+", _field(data, row, "name").lower()))


def _of(data: TaskData, row: TaskRow) -> Prediction:
    """Another row's own answer, with its picture where the task is about these."""
    if not data.task.spec.picture:
        return Prediction(text=row.right)
    with Pillow.open(data.picture(row)) as picture:
        return Prediction(text=row.right, picture=picture.convert("RGB"))


def _known(data: TaskData, name: str) -> list[TaskRow]:
    if not data.known:
        raise ConfigError(
            f"task {data.task.name}: the baseline {name} learns from known rows, and there are none; name a split in"
            " `known:`.",
            code="bad_config",
        )
    return list(data.known)


def _field(data: TaskData, row: TaskRow, name: str) -> str:
    value: Any = row.fields.get(name)
    if not isinstance(value, str):
        raise ConfigError(
            f"task {data.task.name}: a baseline needs rows with {name!r}; leave it out.", code="bad_config"
        )
    return value
