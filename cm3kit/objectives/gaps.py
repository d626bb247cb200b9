"""Gaps of a page for training a decoder that fills in place, and their layout.

A text gap of unknown length has more positions than its answer: the answer, then `<eoss>` in all others. The model
thus learns where answers end, and pages have the same form in training and inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from pydantic import Field
from torch import Generator

from cm3kit.config import Settings
from cm3kit.objectives.units import Units, policy, units
from cm3kit.types import Span
from cm3kit_tokenizers.vocab import Vocab

# Numbers of positions of a gap of unknown length, in training and inference.
LENGTHS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class GapLaw(Settings):
    """Distribution of gaps.

    Attributes:
        all: share of pages on which every picture, value and text is a gap.
        picture: on other pages, probability that a picture is a gap; `box`: that only a box of it is.
        words: probability that a value or an element's content is a gap; `part`: that only a part of its text is.
        exact: share of text gaps with exactly the length of their answer.
        spare: largest number of steps of `LENGTHS` above the smallest size that fits the answer.
    """

    all: float = Field(0.1, ge=0, le=1)
    picture: float = Field(0.6, ge=0, le=1)
    box: float = Field(0.15, ge=0, le=1)
    words: float = Field(0.3, ge=0, le=1)
    part: float = Field(0.2, ge=0, le=1)
    exact: float = Field(0.15, ge=0, le=1)
    spare: int = Field(2, ge=0)


@dataclass(frozen=True, slots=True)
class Layout:
    """A page with its gaps laid out: `hidden` marks the positions of gaps, `answers` has one span per gap."""

    ids: list[int]
    hidden: list[bool]
    answers: tuple[Span, ...]


def draw_gaps(
    ids: Sequence[int],
    law: GapLaw,
    vocab: Vocab,
    grid: tuple[int, int] | None,
    continues: Sequence[bool] | None,
    rng: Generator,
) -> list[Span]:
    """Disjoint spans to mask, in order; at least one if the page has a picture or a text."""
    found = units(ids, vocab, continues)
    written = [*found.values, *(each for each in found.elements if not _meets(each, found.images))]
    # Truncated pictures are only context.
    whole = [each for each in found.images if grid is None or each.stop - each.start == grid[0] * grid[1]]
    whole = whole or list(found.images)
    draws = iter(torch.rand(4 * (len(whole) + len(written)) + 4, generator=rng, dtype=torch.float64).tolist())
    if next(draws) < law.all:
        return _disjoint([*whole, *written])
    taken: list[Span] = []
    for image in whole:
        if next(draws) < law.picture:
            boxed = next(draws) < law.box
            taken += _part("image_box", image, found, grid, rng) if boxed else [image]
    for unit in written:
        if next(draws) < law.words and not _meets(unit, taken):
            parted = next(draws) < law.part
            taken += _part("text_only", _text_in(unit, found, rng), found, grid, rng) if parted else [unit]
    pool = [*whole, *written] or list(found.texts)
    if not taken and pool:
        taken = [pool[int(next(draws) * len(pool))]]
    return _disjoint(taken)


def lay_out(
    ids: Sequence[int], gaps: Sequence[Span], law: GapLaw, vocab: Vocab, room: int, rng: Generator
) -> Layout:
    """Append `<eoss>` to the answers of text gaps, with at most `room` additional ids."""
    draws = iter(torch.rand(2 * len(gaps) + 1, generator=rng, dtype=torch.float64).tolist())
    out: list[int] = []
    hidden: list[bool] = []
    answers: list[Span] = []
    place = 0
    for gap in gaps:
        given, answer = list(ids[place : gap.start]), list(ids[gap.start : gap.stop])
        exact, extra = next(draws) < law.exact, next(draws)
        if answer[0] < vocab.image.start and not exact:
            spare = _spare(len(answer), law.spare, extra, room)
            room -= spare
            answer += [vocab.eoss] * spare
        start = len(out) + len(given)
        out += [*given, *answer]
        hidden += [*[False] * len(given), *[True] * len(answer)]
        answers.append(Span(start, start + len(answer)))
        place = gap.stop
    rest = list(ids[place:])
    return Layout([*out, *rest], [*hidden, *[False] * len(rest)], tuple(answers))


def _spare(size: int, most: int, u: float, room: int) -> int:
    """Number of `<eoss>` after an answer of `size` ids; 0 if there is no room for one."""
    sizes = [each for each in LENGTHS if size < each <= size + room]
    # The smallest gap has one id more than its answer, which otherwise would have no end.
    return sizes[int(u * min(len(sizes), most + 1))] - size if sizes else min(1, room)


def _part(
    name: str, unit: Span | None, found: Units, grid: tuple[int, int] | None, rng: Generator
) -> list[Span]:
    """A part of a unit by a masking policy; the whole unit if it cannot be divided."""
    if unit is None:
        return []
    draws = iter(torch.rand(4, generator=rng, dtype=torch.float64).tolist())
    rows = grid[0] if grid else 1
    return policy[name].shape(unit, found, grid, rows, draws) or [unit]


def _text_in(unit: Span, found: Units, rng: Generator) -> Span | None:
    texts = [each for each in found.texts if unit.start <= each.start and each.stop <= unit.stop]
    return texts[int(torch.randint(len(texts), (), generator=rng))] if texts else None


def _meets(span: Span, others: Sequence[Span]) -> bool:
    return any(span.start < each.stop and each.start < span.stop for each in others)


def _disjoint(spans: Sequence[Span]) -> list[Span]:
    """Spans in order without overlaps; of nested spans the outer one is kept."""
    out: list[Span] = []
    for span in sorted(spans, key=lambda each: (each.start, -each.stop)):
        if span.start < span.stop and (not out or out[-1].stop <= span.start):
            out.append(span)
    assert all(left.stop <= right.start for left, right in pairwise(out))
    return out
