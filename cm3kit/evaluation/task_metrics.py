"""How answers are judged: each metric gives what a row adds to numerator and denominator of each figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from cm3kit.evaluation.bootstrap import Ratio
from cm3kit.evaluation.retrieval import Index
from cm3kit.evaluation.task_rows import TaskData, TaskRow
from cm3kit.evaluation.words import edit_distance
from cm3kit.extras import need
from cm3kit.registry import Registry
from cm3kit_tokenizers.errors import DataError

SIDE = 64  # pixels of the pictures that are compared


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer: words, a picture, or one of the candidates; of a baseline that guesses, how often it takes each."""

    text: str | None = None
    picture: Pillow.Image | None = None
    choices: Mapping[str, float] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)


Judge = Callable[[TaskRow, Prediction], dict[str, Ratio]]
metric: Registry[Callable[[TaskData], Judge]] = Registry("metric")


@metric("choice")
def choice(data: TaskData) -> Judge:
    """accuracy; accuracy_ambiguous over rows with several candidates; micro_f1; candidate_recall, which bounds them."""

    def judge(row: TaskRow, answer: Prediction) -> dict[str, Ratio]:
        hit, told = answer.choices.get(row.right, 0.0), sum(answer.choices.values())
        several = float(len(row.candidates or ()) > 1)
        return {
            "accuracy": (hit, 1.0),
            "accuracy_ambiguous": (hit * several, several),
            "micro_f1": (2 * hit, told + 1.0),
            "candidate_recall": (float(row.right in (row.candidates or ())), 1.0),
        }

    return judge


@metric("linking")
def linking(data: TaskData) -> Judge:
    """accuracy of titles that are written; the same where several end in the mention, and where no known row has the
    title; micro_f1, in which a row without an answer lowers recall alone.
    """
    known = {row.right for row in data.known}

    def judge(row: TaskRow, answer: Prediction) -> dict[str, Ratio]:
        choices = {answer.text: 1.0} if answer.text else answer.choices
        hit, told = choices.get(row.right, 0.0), sum(choices.values())
        several, new = float(len(row.named) > 1), float(row.right not in known)
        return {
            "accuracy": (hit, 1.0),
            "accuracy_ambiguous": (hit * several, several),
            "accuracy_unseen": (hit * new, new),
            "micro_f1": (2 * hit, told + 1.0),
        }

    return judge


@metric("words")
def words(data: TaskData) -> Judge:
    """exact, and similarity: 1 - Levenshtein distance in characters / the longer length; case and ends do not count."""

    def judge(row: TaskRow, answer: Prediction) -> dict[str, Ratio]:
        said, right = (" ".join((each or "").lower().split()) for each in (answer.text, row.right))
        alike = 1 - edit_distance(said, right) / max(1, len(said), len(right))
        return {"exact": (float(said == right), 1.0), "similarity": (alike, 1.0)}

    return judge


@metric("rouge")
def rouge(data: TaskData) -> Judge:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L by rouge-score, with its stemmer."""
    scorer = need("rouge_score.rouge_scorer", "lm-eval", "the metric rouge").RougeScorer(
        ["rouge1", "rouge2", "rougeL"], use_stemmer=True
    )

    def judge(row: TaskRow, answer: Prediction) -> dict[str, Ratio]:
        found = scorer.score(row.right, answer.text or "")
        return {name: (float(found[name].fmeasure), 1.0) for name in ("rouge1", "rouge2", "rougeL")}

    return judge


@metric("retrieval")
def retrieval(data: TaskData) -> Judge:
    """top1 and top5: whether the right picture is among the nearest to the drawn one, in `evaluation.retrieval`."""
    index = picture_index(data)

    def judge(row: TaskRow, answer: Prediction) -> dict[str, Ratio]:
        if answer.picture is None:
            return {"top1": (0.0, 1.0), "top5": (0.0, 1.0)}
        rank = int(index.ranks(pixels(answer.picture)[None], [row.right])[0])
        return {"top1": (float(rank < 1), 1.0), "top5": (float(rank < 5), 1.0)}

    return judge


def picture_index(data: TaskData) -> Index:
    """The pictures of all rows, asked or known, by right answer."""
    rows = {row.right: row for row in (*data.known, *data.rows)}
    return Index.build(list(rows), torch.stack([opened(data, row) for row in rows.values()]))


def opened(data: TaskData, row: TaskRow) -> torch.Tensor:
    """A row's picture, uint8 (3, SIDE, SIDE); DataError (`no_file`) if it cannot be read."""
    path = data.picture(row)
    try:
        with Pillow.open(path) as picture:
            return pixels(picture)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.", code="no_file") from error


def pixels(picture: Pillow.Image) -> torch.Tensor:
    """A picture as uint8 (3, SIDE, SIDE)."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Pillow.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)
