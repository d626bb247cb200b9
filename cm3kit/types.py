"""The nouns of cm3kit. Shape suffixes: B rows, T positions, V vocabulary, N image codes, C H W pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from cm3kit.canvas import Attention as Attention
from cm3kit.canvas import Canvas as Canvas
from cm3kit.canvas import ConstraintSpec as ConstraintSpec
from cm3kit.canvas import Flat as Flat
from cm3kit.canvas import MaskSpan as MaskSpan
from cm3kit.canvas import SpanKind as SpanKind
from cm3kit_tokenizers.errors import Cm3kitError


@dataclass(frozen=True, slots=True)
class Span:
    """Ids `start:stop` of a document that an objective masked."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Example:
    """One document as a question with its marked answer (training).

    `ids[t]` is a target that weighs `weights[t]`. The model reads it off the place before it (`shift`, as
    causal models do) or off its own place; with `shift`, `weights[0]` is unused.

    Attributes:
        inputs: what the model sees instead of `ids`.
        blocks: number of the block each id is in, and `noisy` whether it is of the noised copy: who looks
            where (`models.attention.block_mask`). Unless given, every id looks left.
        places: position ids; 0, 1, … unless given.
        time: noise level in [0, 1], the share that is hidden on average, of the whole document or id by id. In
            use it is the share that is still open, whatever the schedule was.
        mass: what this document adds to the divisor of the loss; the sum of its weights unless given.
    """

    ids: list[int]
    weights: list[float]
    spans: tuple[Span, ...] = ()
    inputs: list[int] | None = None
    blocks: list[int] | None = None
    noisy: list[bool] | None = None
    places: list[int] | None = None
    time: float | list[float] = 0.0
    shift: bool = True
    mass: float | None = None


@dataclass(frozen=True, slots=True)
class Fill:
    """What a decoder wrote into one span, without sentinel and end id.

    `logprobs` has log p of each id that was sampled: the ids, and the end id unless an exact length or the budget
    forced it. It is taken before guidance, temperature and cuts. `ended` is False where the budget ended the run. `end`
    is the id that did, of a span with several.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    end: int | None = None

    @property
    def logprob(self) -> float:
        """Their sum."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Commit:
    """What one forward pass changed in one row, best score first, and among equals from left to right.

    `positions` count in the flat canvas, `logprobs` are those of the model before temperature and cuts; `scores` those
    that chose the positions. A `remask` masks positions again (its ids are those taken back), an `edit` replaces ids.
    """

    step: int
    positions: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    scores: tuple[float, ...]
    kind: Literal["write", "remask", "edit"] = "write"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """How a row was written: from `canvas` by `commits`, in order."""

    canvas: Canvas
    commits: tuple[Commit, ...]


@dataclass(slots=True)
class Cost:
    """What one row took; guided rows pay for each stream.

    Attributes:
        full: forward passes over all of its positions.
        partial: forward passes over some of them, the rest from a cache.
        token_forwards: positions that went through the layers, summed over passes.
        head_rows: positions that went through the language model head.
        wasted: passes after which nothing was committed.
    """

    full: int = 0
    partial: int = 0
    token_forwards: int = 0
    head_rows: int = 0
    wasted: int = 0

    @property
    def forwards(self) -> int:
        """Forward passes of either kind (the number of function evaluations)."""
        return self.full + self.partial

    def add(self, positions: int, length: int) -> None:
        """Count a pass over `positions` of the `length` positions of the row; over none, it was no pass."""
        self.full += positions == length > 0
        self.partial += 0 < positions < length
        self.token_forwards += positions


@dataclass(slots=True)
class Verification:
    """How far logits that were read with a cache are from those of the same rows without one.

    Attributes:
        passes: passes that were compared.
        slots: slots that were compared.
        largest: largest difference of two logits.
        flips: slots where the best id differs.
    """

    passes: int = 0
    slots: int = 0
    largest: float = 0.0
    flips: int = 0

    def add(self, cached: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
        """Compare what a pass gave, for each row logits (M, V), with what it should have given."""
        self.passes += 1
        cached_MV, plain_MV = torch.cat(list(cached)), torch.cat(list(plain))
        self.slots += len(cached_MV)
        self.largest = max(self.largest, float((cached_MV - plain_MV).abs().max()))
        self.flips += int((cached_MV.argmax(-1) != plain_MV.argmax(-1)).sum())


@dataclass(frozen=True)
class Result:
    """What a decoder gives for one canvas.

    Attributes:
        canvas: as it came.
        fills: what was written into each span, without its first end id and what follows.
        cost: at what cost.
        commits: in which order; None where the ids were written one after the other from left to right.
        verification: what a cache changed, over all that was written together; None unless it was asked for.
    """

    canvas: Canvas
    fills: tuple[Fill, ...]
    cost: Cost = field(default_factory=Cost, compare=False)
    commits: tuple[Commit, ...] | None = None
    verification: Verification | None = field(default=None, compare=False)

    @cached_property
    def trajectory(self) -> Trajectory:
        """How it was written, in a canvas with slots: that of a left-to-right decoder has an id a commit."""
        if self.commits is not None:
            return Trajectory(self.canvas, self.commits)
        return Trajectory(*_one_by_one(self.canvas, self.fills))

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The flat canvas with all that was written; a position that is still masked holds -1."""
        flat = list(self.trajectory.canvas.flatten(-1).ids)
        for commit in self.trajectory.commits:
            for position, id in zip(commit.positions, commit.ids, strict=True):
                flat[position] = -1 if commit.kind == "remask" else id
        return tuple(flat)


def _one_by_one(canvas: Canvas, fills: Sequence[Fill]) -> tuple[Canvas, tuple[Commit, ...]]:
    """A canvas with as many slots as were written, and a commit for each of its ids."""
    spans = []
    for span, fill in zip(canvas.spans, fills, strict=True):
        # An end id that the model wrote is one of the answer's positions.
        size = len(fill.logprobs)
        spans.append(replace(span, max_tokens=size, slots=size))
    laid = replace(canvas, spans=tuple(spans), guides=())
    commits: list[Commit] = []
    for span, where, fill in zip(spans, laid.flatten(-1).ranges, fills, strict=True):
        ids = (
            fill.ids
            if len(fill.ids) == len(where)
            else (*fill.ids, (span.end if fill.end is None else fill.end) or 0)
        )
        for position, id, logprob in zip(where, ids, fill.logprobs, strict=True):
            commits.append(Commit(len(commits), (position,), (id,), (logprob,), (0.0,)))
    return laid, tuple(commits)


@dataclass(frozen=True, slots=True)
class Step:
    """What a decoder committed once: `ids[row]` is the id written in that row, or None.

    A decoder that writes several ids at once reports `commits[row]` instead.
    """

    index: int
    total: int
    ids: tuple[int | None, ...]
    commits: tuple[Commit | None, ...] = ()


OnStep = Callable[[Step], None]


def ignore_step(step: Step) -> None:
    """The `OnStep` that does nothing."""


class Decoder(Protocol):
    """Fills canvases."""

    def stream(self, canvases: Iterator[Canvas]) -> Iterator[tuple[int, Result | Cm3kitError]]:
        """Fill canvases as they come, many at once; a free place takes the next one.

        Args:
            canvases: asked again whenever a canvas is finished, so it may have a next one after it had none.

        Yields:
            The number of a canvas, in the order of the iterator from 0, and its result, or why it has none.
        """

    def fill(self, canvases: Sequence[Canvas], on_step: OnStep = ignore_step) -> list[Result]:
        """The result of each canvas; raises the first error."""
