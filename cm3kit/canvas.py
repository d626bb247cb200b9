"""What both decoders fill: a sequence of known ids, and spans that are missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cm3kit_tokenizers.errors import ConfigError

SpanKind = Literal["content", "attribute", "image", "document"]
Attention = Literal["causal", "full"]


@dataclass(frozen=True, slots=True)
class ConstraintSpec:
    """What an answer may say: a kind of the registry `decoders.constraints.constraint`, and its value in words.

    `lead` is written before the answer in the model's tokens, as the space that the page has there already.
    """

    kind: str
    value: str = ""
    lead: str = ""


@dataclass(frozen=True, slots=True)
class MaskSpan:
    """A run of ids that is missing: in the page, or behind it.

    Attributes:
        at: index in `Canvas.ids` before which it lies; `len(ids)` is behind all of them.
        max_tokens: ids of the longest answer, the end id not counted.
        exact: whether the answer has exactly `max_tokens` ids, so that the model writes no end id.
        slots: masked positions that are laid out, of which those after the first `max_tokens` hold `end`; 0 where the
            answer grows from left to right.
        lead: given ids right before the answer (the sentinel).
        end: id that closes the answer; one that the next lead starts with is written once.
        ends: further ids that close it, of a causal decoder; the fill says which one did.
        may_be_empty: whether an answer of no ids is one, for a causal decoder.
        page_at: index in `Canvas.ids` where the page has the gap, which the grammar's context ends at; None is `at`.
        gap: number of the gap of the page, and `part` of the piece of it.
        constraint: what the answer may say, besides what the place allows.
        answer: ids of an answer to score, without the end id.
    """

    kind: SpanKind
    at: int
    max_tokens: int
    exact: bool = False
    slots: int = 0
    lead: tuple[int, ...] = ()
    end: int | None = None
    page_at: int | None = None
    gap: int = 0
    part: int = 0
    constraint: ConstraintSpec | None = None
    answer: tuple[int, ...] | None = None
    ends: tuple[int, ...] = ()
    may_be_empty: bool = False

    @property
    def context(self) -> int:
        """Index in `Canvas.ids` up to which the page stands before the gap."""
        return self.at if self.page_at is None else self.page_at


@dataclass(frozen=True, slots=True)
class Flat:
    """A canvas as one sequence of T ids.

    Attributes:
        ids: known ids, leads, the mask id at masked positions, end ids that are given behind them.
        ranges: the masked positions of each span; positions of commits count in the same way.
    """

    ids: tuple[int, ...]
    ranges: tuple[range, ...]


@dataclass(frozen=True)
class Canvas:
    """One sequence of which parts are missing.

    Attributes:
        ids: the known ids.
        spans: what is missing, in order of `at`.
        guides: for guidance, canvases with the same spans and other ids: none, the unconditional one, or
            (unconditional, image-only).
        prompt_attention: whether the known ids look left or at one another, in a causal decoder.
        seed: of this row's own random numbers.
    """

    ids: tuple[int, ...]
    spans: tuple[MaskSpan, ...]
    guides: tuple[Canvas, ...] = ()
    prompt_attention: Attention = "causal"
    seed: int = 0

    def flatten(self, mask: int) -> Flat:
        """The canvas with the id `mask` at each masked position.

        Raises:
            ConfigError: the spans are out of order or lie outside, or hold more answer than slots (`bad_value`).
        """
        ids: list[int] = []
        ranges: list[range] = []
        done = 0
        for span in self.spans:
            if not done <= span.at <= len(self.ids) or not 0 <= span.max_tokens <= span.slots:
                raise ConfigError(
                    f"A span at {span.at} of {len(self.ids)} ids, {span.max_tokens} tokens in {span.slots} masked"
                    " positions: spans lie in order, inside, and have room for their answer.",
                    code="bad_value",
                )
            ids += [*self.ids[done : span.at], *span.lead]
            ranges.append(range(len(ids), len(ids) + span.max_tokens))
            rest = span.slots - span.max_tokens
            if rest and span.end is None:
                raise ConfigError(f"The span at {span.at} has no end id for its rest.", code="bad_value")
            ids += [*[mask] * span.max_tokens, *[span.end or 0] * rest]
            done = span.at
        return Flat((*ids, *self.ids[done:]), tuple(ranges))

    @classmethod
    def unflatten(
        cls,
        ids: Sequence[int],
        spans: Iterable[tuple[range, MaskSpan]],
        guides: Iterable[Sequence[int]] = (),
        seed: int = 0,
    ) -> Canvas:
        """The canvas of a flat sequence whose `spans` lie at these ranges; their `at` and sizes follow from these.

        Raises:
            ConfigError: ranges overlap or lie outside, or a guide has another length (`bad_value`).
        """
        found = sorted(spans, key=lambda each: each[0].start)
        inside = [position for where, _ in found for position in where]
        guides = [tuple(each) for each in guides]
        wrong = len({*inside}) < len(inside) or any(not 0 <= each < len(ids) for each in inside)
        if wrong or any(len(each) != len(ids) for each in guides):
            raise ConfigError(
                f"The spans of {len(ids)} positions overlap or leave them, or a guide has another length.",
                code="bad_value",
            )
        placed, before = [], 0
        for where, span in found:
            placed.append(replace(span, at=where.start - before, max_tokens=len(where), slots=len(where)))
            before += len(where)
        taken = {*inside}
        rows = [tuple(id for at, id in enumerate(row) if at not in taken) for row in (ids, *guides)]
        return cls(rows[0], tuple(placed), tuple(cls(row, tuple(placed)) for row in rows[1:]), seed=seed)
