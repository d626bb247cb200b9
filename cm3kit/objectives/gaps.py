"""Which gaps a page gets in training of a decoder that writes in place, and how a gap is laid out.

A text gap of unknown length is laid out as more slots than its answer takes: the answer, then `<eoss>` in every
slot that is left. So a model learns where answers end, and a page in training looks as it does in use.
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

# Slots that a gap of unknown length gets, in training and in use.
LENGTHS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class GapLaw(Settings):
    """How gaps are drawn.

    Attributes:
        all: share of pages on which every picture, value and text is a gap.
        picture: chance of a picture to be a gap on other pages, `box` of those to be a box of it only.
        words: chance of a value or an element's content to be one, `part` of those to be a part of a text only.
        exact: share of text gaps that have exactly their answer's length.
        spare: most sizes of `LENGTHS` that a gap may have above the least that its answer fits in.
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
    """A page with its gaps laid out: `hidden` are the slots of gaps, `answers` the runs of one gap each."""

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
    """Disjoint spans to hide, in order; at least one if the page has a picture or a text."""
    found = units(ids, vocab, continues)
    written = [*found.values, *(each for each in found.elements if not _meets(each, found.images))]
    # Pictures of which a part was cut off are context.
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
    """Put `<eoss>` behind the answers of text gaps, as far as `room` more ids allow."""
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
    """How many `<eoss>` go behind an answer of `size` ids: 0 if not even one has room."""
    sizes = [each for each in LENGTHS if size < each <= size + room]
    # An answer as long as its gap would have no end, so the least gap holds one id more.
    return sizes[int(u * min(len(sizes), most + 1))] - size if sizes else min(1, room)


def _part(
    name: str, unit: Span | None, found: Units, grid: tuple[int, int] | None, rng: Generator
) -> list[Span]:
    """A part of a unit by a masking policy; the whole of it where it cannot be parted."""
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
    """Spans in order, without those that meet one before them; of nested ones the inner go."""
    out: list[Span] = []
    for span in sorted(spans, key=lambda each: (each.start, -each.stop)):
        if span.start < span.stop and (not out or out[-1].stop <= span.start):
            out.append(span)
    assert all(left.stop <= right.start for left, right in pairwise(out))
    return out
