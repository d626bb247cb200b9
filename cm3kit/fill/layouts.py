"""Where answers go: how ids with gaps become a canvas, and fills become ids again.

Three layouts: `behind` the page at a sentinel (CM3, arXiv:2201.07520, sec. 2), `in-place`, and `continue`, which
writes a picture or the rest of a page behind what comes before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from cm3kit.decoders.grammar.elements import CONTENT
from cm3kit.objectives.hints import SizeHints
from cm3kit.registry import Registry
from cm3kit.types import Canvas, Fill, MaskSpan, SpanKind
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.vocab import Vocab

Ids = Sequence[int | Gap]


@dataclass(frozen=True, slots=True)
class Room:
    """What a gap may take: ids of the longest answer, whether it has exactly as many, and masked positions.

    `slots` is 0 where answers grow from left to right.
    """

    max_tokens: int
    exact: bool
    slots: int = 0


Limits = Callable[[Gap], Room]


@dataclass(frozen=True)
class LayoutParts:
    """What layouts are built from.

    Attributes:
        hints: writes the sizes that gaps wish for behind their sentinels; None writes none.
        span_end: the id that ends an answer behind the page: `<eoss>` after each, or `<eod>` after the last only.
    """

    vocab: Vocab
    tokenizer: PageTokenizer
    hints: SizeHints | None = None
    span_end: Literal["eoss", "eod"] = "eoss"


class Layout(Protocol):
    """How a page with gaps becomes a canvas, and fills become ids again."""

    @property
    def most_gaps(self) -> int:
        """Gaps that one canvas can have."""

    def cost(self, gap: Gap, limits: Limits) -> int:
        """Ids that a gap takes at most, besides its own position on the page."""

    def lay_out(
        self, ids: Ids, limits: Limits, *, reaches: tuple[bool, bool], guided: bool, seed: int
    ) -> Canvas:
        """The canvas of a page, or of a part of it.

        Args:
            reaches: whether the ids begin where the page does, and end there; a part shows only such ends.
            guided: whether the canvas needs one for guidance, without what the gaps are conditioned on.

        Raises:
            PageError: there is no gap (`no_mask`), there are too many (`bad_value`), or one is where this layout
                cannot write (`gap_place`).
        """

    def read(self, ids: Ids, canvas: Canvas, fills: Sequence[Fill]) -> list[int]:
        """The page with its gaps filled; ValueError unless there is one fill for each of its gaps."""


layout: Registry[Callable[[LayoutParts], Layout]] = Registry("layout")


def gaps_of(ids: Ids) -> Iterator[tuple[int, Gap]]:
    """Each gap with its index."""
    return ((index, each) for index, each in enumerate(ids) if isinstance(each, Gap))


def gaps_in(ids: Sequence[int | Gap], most: int | None = None) -> tuple[Gap, ...]:
    """The gaps of a page, in order.

    Raises:
        PageError: there is none (`no_mask`), or there are more than `most` (`bad_value`).
    """
    gaps = tuple(each for each in ids if isinstance(each, Gap))
    if not gaps:
        raise PageError("the page has no gap; write <mask> where something is missing.", code="no_mask")
    if most is not None and len(gaps) > most:
        raise PageError(
            f"{len(gaps)} gaps, but the model has {most} sentinels; remove {len(gaps) - most}.",
            code="bad_value",
        )
    return gaps


def put_in(ids: Ids, written: Mapping[tuple[int, int], Sequence[int]]) -> list[int | Gap]:
    """The page with what was written into gaps, by the number of the gap and of the piece of it."""
    out: list[int | Gap] = []
    for each in ids:
        key = (each.index, each.part) if isinstance(each, Gap) else None
        out += written[key] if key is not None and key in written else [each]
    return out


def put_back(ids: Ids, canvas: Canvas, fills: Sequence[Fill]) -> list[int]:
    """Each fill where its gap was."""
    rest = iter(zip(canvas.spans, fills, strict=True))
    out: list[int] = []
    for each in ids:
        if not isinstance(each, Gap):
            out.append(each)
            continue
        span, fill = next(rest)
        if (span.gap, span.part) != (each.index, each.part):
            raise ValueError(f"{each} is not the gap that was laid out, {span}")
        out += fill.ids
    return out


@layout("behind")
class Behind:
    """Sentinels stand for the gaps, and the answers follow the page, each at its sentinel.

    Known ids are `<eod> D0 <mask:0> D1 … <eod>`; with masked positions an exact answer is followed by its given end.
    """

    def __init__(self, parts: LayoutParts) -> None:
        self._parts, self._vocab = parts, parts.vocab

    @property
    def most_gaps(self) -> int:
        """One for each sentinel."""
        return self._vocab.sentinels

    def cost(self, gap: Gap, limits: Limits) -> int:
        """The answer between its sentinel and its end, and the hint on the page."""
        room = limits(gap)
        return max(room.max_tokens, room.slots) + 2 + len(self._hint(gap))

    def lay_out(
        self, ids: Ids, limits: Limits, *, reaches: tuple[bool, bool], guided: bool, seed: int
    ) -> Canvas:
        """See `Layout`."""
        gaps, vocab = gaps_in(ids, self._vocab.sentinels), self._vocab
        known: list[int] = [vocab.eod] if reaches[0] else []
        page_at: list[int] = []
        for each in ids:
            if isinstance(each, Gap):
                page_at.append(len(known))
                known += [vocab.sentinel(len(page_at) - 1), *self._hint(each)]
            else:
                known.append(each)
        known += [vocab.eod] if reaches[1] and self._parts.span_end == "eoss" else []
        spans = [
            self._span(gap, limits(gap), number, len(known), place)
            for number, (gap, place) in enumerate(zip(gaps, page_at, strict=True))
        ]
        if self._parts.span_end == "eod":  # an answer ends where the next begins, the last by <eod>
            ends = [*(span.lead[0] for span in spans[1:]), vocab.eod]
            spans = [replace(span, end=end) for span, end in zip(spans, ends, strict=True)]
        canvas = Canvas(tuple(known), tuple(spans), seed=seed)
        if not guided:
            return canvas
        if any(span.slots for span in spans):
            return without_given(canvas, vocab)
        bare = without_words(self._parts.tokenizer, ids)
        guide = self.lay_out(bare, limits, reaches=(True, True), guided=False, seed=0)
        return replace(canvas, guides=(guide,))

    def _hint(self, gap: Gap) -> list[int]:
        return self._parts.hints.behind(gap) if self._parts.hints else []

    def _span(self, gap: Gap, room: Room, number: int, at: int, page_at: int) -> MaskSpan:
        lead = (self._vocab.sentinel(number),)
        # Masked positions of an answer of unknown length include its end.
        slots = room.slots + room.exact if room.slots else 0
        return MaskSpan(
            gap.kind, at, room.max_tokens, room.exact, slots, lead, self._vocab.eoss, page_at, gap.index, gap.part
        )  # fmt: skip

    def read(self, ids: Ids, canvas: Canvas, fills: Sequence[Fill]) -> list[int]:
        """See `Layout`."""
        return put_back(ids, canvas, fills)


@layout("in-place")
class InPlace:
    """Masked positions stand where the gaps are."""

    def __init__(self, parts: LayoutParts) -> None:
        self._vocab = parts.vocab

    @property
    def most_gaps(self) -> int:
        """As many as fit."""
        return 1 << 30

    def cost(self, gap: Gap, limits: Limits) -> int:
        """Its masked positions, of which one is the gap's own."""
        return limits(gap).slots - 1

    def lay_out(
        self, ids: Ids, limits: Limits, *, reaches: tuple[bool, bool], guided: bool, seed: int
    ) -> Canvas:
        """See `Layout`. A part that begins with a gap gets an id before it, which a shifted model needs."""
        gaps_in(ids)
        known: list[int] = [self._vocab.eod] if reaches[0] or isinstance(ids[0], Gap) else []
        spans: list[MaskSpan] = []
        for each in ids:
            if not isinstance(each, Gap):
                known.append(each)
                continue
            room = limits(each)
            spans.append(
                MaskSpan(
                    each.kind, len(known), room.max_tokens, room.exact, room.slots, end=self._vocab.eoss,
                    gap=each.index, part=each.part,
                )
            )  # fmt: skip
        known += [self._vocab.eod] if reaches[1] else []
        canvas = Canvas(tuple(known), tuple(spans), seed=seed)
        return without_given(canvas, self._vocab) if guided else canvas

    def read(self, ids: Ids, canvas: Canvas, fills: Sequence[Fill]) -> list[int]:
        """See `Layout`."""
        return put_back(ids, canvas, fills)


@layout("continue")
class Continue:
    """What comes before a gap is known; a picture, a value, the words of an element or the rest of the page follow it.

    Of what is behind the gap nothing is seen but that the value or the element ends there. A page without a gap is
    continued to its end.
    """

    def __init__(self, parts: LayoutParts) -> None:
        self._vocab = parts.vocab

    @property
    def most_gaps(self) -> int:
        """One."""
        return 1

    def cost(self, gap: Gap, limits: Limits) -> int:
        """The answer and its end."""
        return limits(gap).max_tokens + 1

    def lay_out(
        self, ids: Ids, limits: Limits, *, reaches: tuple[bool, bool], guided: bool, seed: int
    ) -> Canvas:
        """See `Layout`."""
        (place, gap), *more = [*gaps_of(ids)] or [(len(ids), Gap(0, "content"))]
        if more:
            raise _unreachable("has one gap at a time")
        known = [self._vocab.eod, *(each for each in ids[:place] if isinstance(each, int))]
        room = limits(gap)
        kind, end = self._ending(gap, ids[place + 1 : place + 2])
        span = MaskSpan(
            kind, len(known), room.max_tokens, room.exact, room.slots, end=end, gap=gap.index, part=gap.part
        )
        canvas = Canvas(tuple(known), (span,), seed=seed)
        return self._guided(canvas) if guided else canvas

    def _ending(self, gap: Gap, after: Ids) -> tuple[SpanKind, int]:
        """What is written, and the id that ends it: that which stands behind the gap, or the end of the page.

        Into an element go words alone: an end tag among them would be taken for the end.
        """
        if gap.kind == "image":
            return "image", self._vocab.eoss
        if gap.kind == "content" and not after:
            return "document", self._vocab.eod
        (end,) = after or (None,)
        if not isinstance(end, int) or end not in self._vocab.markup:
            raise _unreachable("cannot lead to the words behind a gap")
        closing = self._vocab.piece(end)
        value = gap.kind == "attribute" and closing == '"'
        if not value and (not closing.startswith("</") or "" not in CONTENT.get(closing[2:-1], ())):
            raise _unreachable("cannot lead to the elements behind a gap")
        return "attribute", end

    def _guided(self, canvas: Canvas) -> Canvas:
        """The guide has a sentinel instead of the words (arXiv:2309.02591, sec. 2.2); none where there are none."""
        ids, vocab = canvas.ids, self._vocab
        words = [index for index, each in enumerate(ids) if each in vocab.text]
        if not words:
            return canvas
        hidden = (*ids[: words[0]], vocab.sentinel(0), *ids[words[-1] + 1 :])
        (span,) = canvas.spans
        return replace(canvas, guides=(Canvas(hidden, (replace(span, at=len(hidden)),)),))

    def read(self, ids: Ids, canvas: Canvas, fills: Sequence[Fill]) -> list[int]:
        """See `Layout`; what is written follows all that was given."""
        (fill,) = fills
        if any(isinstance(each, Gap) for each in ids):
            return [id for each in ids for id in (fill.ids if isinstance(each, Gap) else (each,))]
        return [*(each for each in ids if isinstance(each, int)), *fill.ids]


def _unreachable(what: str) -> PageError:
    return PageError(
        f"a next-token model {what}; put the gap at the end of a value, of an element or of the page, or use a model"
        " with objective cm3.",
        code="gap_place",
    )


def without_given(canvas: Canvas, vocab: Vocab) -> Canvas:
    """The canvas with its guide for masked diffusion: the same one with all given text and pictures masked."""
    start = vocab.text.start
    hidden = tuple(vocab.mask if id >= start else id for id in canvas.ids)
    return replace(canvas, guides=(Canvas(hidden, canvas.spans),))


def without_words(tokenizer: PageTokenizer, ids: Ids) -> list[int | Gap]:
    """Only the pictures that have gaps, without alt or title: what guidance compares a page with."""
    vocab = tokenizer.vocab
    opening, src, quote, closing = (vocab.markup_id(piece) for piece in ("<img", ' src="', '"', ">"))
    out: list[int | Gap] = []
    for place, each in enumerate(ids):
        if each != src:
            continue
        end = next((i for i in range(place + 1, len(ids)) if ids[i] == quote), len(ids))
        value = list(ids[place + 1 : end])
        if any(isinstance(part, Gap) for part in value):
            out += [opening, src, *value, quote, closing]
    return out
