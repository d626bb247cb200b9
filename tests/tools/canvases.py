"""Canvases as tests write them: spans behind a prompt, or flat sequences with masked positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.html_state import State
from cm3kit.fill.layouts import LayoutParts, Limits, Room, layout
from cm3kit.types import Canvas, Fill, MaskSpan, SpanKind
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.vocab import Vocab


def answer(
    kind: SpanKind, max_tokens: int, lead: Sequence[int] = (), length: int | None = None, **more: Any
) -> MaskSpan:
    """A span whose answer grows from left to right, behind whatever it is put."""
    most = max_tokens if length is None else length
    return MaskSpan(kind, 0, most, kind == "image" or length is not None, lead=tuple(lead), **more)


def behind(
    ids: Sequence[int], spans: Sequence[MaskSpan], guides: Sequence[Sequence[int]] = (), seed: int = 0
) -> Canvas:
    """A canvas whose spans lie behind the ids; the sentinel of a content gap tells its context."""
    rows = [tuple(ids), *map(tuple, guides)]
    made = [Canvas(row, tuple(placed(each, row) for each in spans)) for row in rows]
    return replace(made[0], guides=tuple(made[1:]), seed=seed)


def placed(span: MaskSpan, ids: Sequence[int]) -> MaskSpan:
    """The span behind these ids."""
    known = span.kind == "content" and span.lead[-1:] and span.lead[-1] in ids
    return replace(span, at=len(ids), page_at=list(ids).index(span.lead[-1]) if known else None)


def start(grammar: Grammar, span: MaskSpan, ids: Sequence[int]) -> State:
    """The state of a grammar before the first id of a span behind these ids."""
    return grammar.start(placed(span, ids), ids)


def fills_of(decoder: Any, canvases: Sequence[Canvas], *more: Any) -> list[tuple[Fill, ...]]:
    """What a decoder writes into the spans of each canvas."""
    return [each.fills for each in decoder.fill(canvases, *more)]


@dataclass(frozen=True)
class FlatSpan:
    """Masked positions `start:stop` of a flat sequence; a `padded` answer may end before its last one."""

    kind: SpanKind
    start: int
    stop: int
    padded: bool = False
    gap: int = 0
    part: int = 0


def flat_canvas(
    ids: Sequence[int], spans: Sequence[FlatSpan], guide: Sequence[int] = (), seed: int = 0
) -> Canvas:
    """The canvas of a flat sequence."""
    found = [
        (
            range(each.start, each.stop),
            MaskSpan(each.kind, 0, 0, not each.padded, gap=each.gap, part=each.part),
        )
        for each in spans
    ]
    return Canvas.unflatten(ids, found, [guide] if guide else [], seed)


def flat_spans(canvas: Canvas) -> list[FlatSpan]:
    """The masked positions of a canvas."""
    return [
        FlatSpan(span.kind, where.start, where.stop, not span.exact, span.gap, span.part)
        for span, where in zip(canvas.spans, canvas.flatten(-1).ranges, strict=True)
    ]


def lay_out(
    name: str, vocab: Vocab, ids: Sequence[int | Gap], limits: Limits, seed: int = 0,
    reaches: tuple[bool, bool] = (True, True), guided: bool = False, **parts: Any,
) -> Canvas:  # fmt: skip
    """The canvas of a page by a layout."""
    made = layout[name](LayoutParts(vocab, **{"tokenizer": None, **parts}))
    return made.lay_out(ids, limits, reaches=reaches, guided=guided, seed=seed)


def at_most(max_tokens: int, codes: int = 0, slots: bool = False) -> Limits:
    """The same most tokens for every gap of unknown length, with masked positions or without."""

    def limits(gap: Gap) -> Room:
        exact = gap.length or (codes if gap.kind == "image" else None)
        size = max_tokens if exact is None else exact
        return Room(size, exact is not None, size if slots else 0)

    return limits
