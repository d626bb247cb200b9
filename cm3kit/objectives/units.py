"""Units of a document, found by its id ranges: possible cuts, pictures, values, elements."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from cm3kit.registry import Registry
from cm3kit.types import Span
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import ATTRIBUTES, PLAIN, VOID, Vocab


@dataclass(frozen=True, slots=True)
class Units:
    """Non-empty spans of a document's ids, in order of their end.

    `values` are attribute values without pictures, `elements` the contents of elements,
    `texts` maximal runs of text ids, `segments` the pictures and the segments between them.
    `cuts` are the positions between ids where text may be cut.
    """

    images: tuple[Span, ...]
    values: tuple[Span, ...]
    elements: tuple[Span, ...]
    texts: tuple[Span, ...]
    segments: tuple[Span, ...]
    cuts: list[int]


@dataclass(frozen=True, slots=True)
class _Pieces:
    opens: dict[int, str]
    closes: dict[int, str]
    tags: dict[int, str]
    values: frozenset[int]
    quote: int
    tag_end: int


@lru_cache(maxsize=16)
def _pieces(vocab: Vocab) -> _Pieces:
    attributes = {name for names in ATTRIBUTES.values() for name in names}
    return _Pieces(
        opens={vocab.markup_id(f"<{name}>"): name for name in PLAIN},
        closes={vocab.markup_id(f"</{name}>"): name for name in (*PLAIN, "a")},
        tags={vocab.markup_id(f"<{name}"): name for name in ATTRIBUTES},
        values=frozenset(vocab.markup_id(f' {name}="') for name in attributes),
        quote=vocab.markup_id('"'),
        tag_end=vocab.markup_id(">"),
    )


def cuts(
    ids: Sequence[int], vocab: Vocab, continues: Sequence[bool] | None = None, split_images: bool = False
) -> list[int]:
    """Positions 0..len(ids) where a document may be cut, in order: not inside pictures or characters.

    Args:
        continues: for each text id, whether it starts inside a UTF-8 character.
    """
    text, image = vocab.text.start, vocab.image.start
    out, inside = [0], False
    for place, id in enumerate(ids):
        if id >= image:
            allowed, inside = split_images or not inside, True
        else:
            allowed, inside = continues is None or id < text or not continues[id - text], False
        if allowed and place:
            out.append(place)
    return [*out, len(ids)] if len(ids) else out


def runs(ids: Sequence[int], inside: range) -> tuple[Span, ...]:
    """Maximal runs of ids of one range."""
    low, high, out, start = inside.start, inside.stop, [], -1
    for place, id in enumerate(ids):
        if low <= id < high:
            if start < 0:
                start = place
        elif start >= 0:
            out.append(Span(start, place))
            start = -1
    return (*out, Span(start, len(ids))) if start >= 0 else tuple(out)


def units(ids: Sequence[int], vocab: Vocab, continues: Sequence[bool] | None = None) -> Units:
    """Find all units of a document or a slice of one."""
    images = runs(ids, vocab.image)
    values, elements = _markup(ids, vocab)
    return Units(
        images,
        values,
        elements,
        runs(ids, vocab.text),
        segments(images, len(ids)),
        cuts(ids, vocab, continues),
    )


def segments(images: Sequence[Span], size: int) -> tuple[Span, ...]:
    """Pictures, and the segments between them."""
    ends = sorted({0, size, *(end for image in images for end in (image.start, image.stop))})
    return tuple(Span(start, stop) for start, stop in pairwise(ends))


def _markup(ids: Sequence[int], vocab: Vocab) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Attribute values without a picture, and contents of elements; unmatched tags are ignored."""
    pieces, text, image = _pieces(vocab), vocab.text.start, vocab.image.start
    values: list[Span] = []
    elements: list[Span] = []
    opened: list[tuple[str, int]] = []
    tag, value = "", -1
    for place, id in enumerate(ids):
        if id >= text:
            continue
        if id in pieces.values:
            value = place + 1
        elif id == pieces.quote:
            if 0 <= value < place and ids[value] < image:
                values.append(Span(value, place))
            value = -1
        elif id in pieces.tags:
            tag = pieces.tags[id]
        elif id == pieces.tag_end:
            if tag and tag not in VOID:
                opened.append((tag, place + 1))
            tag = ""
        elif id in pieces.opens:
            opened.append((pieces.opens[id], place + 1))
        elif id in pieces.closes:
            _close(pieces.closes[id], place, opened, elements)
    return tuple(values), tuple(elements)


def _close(name: str, place: int, opened: list[tuple[str, int]], elements: list[Span]) -> None:
    for depth in range(len(opened) - 1, -1, -1):
        if opened[depth][0] == name:
            if opened[depth][1] < place:
                elements.append(Span(opened[depth][1], place))
            del opened[depth:]
            return


def window(places: Sequence[int], size: int, u: float) -> Span | None:
    """A slice of at most `size` ids between two of `places`, with its start determined by `u`, or None."""
    start = bisect_left(places, int(u * max(1, places[-1] - size + 1)))
    for first in (*range(start, len(places)), *range(start)):
        last = bisect_right(places, places[first] + size) - 1
        if last > first:
            return Span(places[first], places[last])
    return None


def too_small(budget: int) -> ConfigError:
    """The error for a budget that is too short for a slice of a document."""
    return ConfigError(
        f"a window of {budget} ids is too short for the documents; make it longer.", code="too_long"
    )  # fmt: skip


Shape = Callable[[Span, Units, "tuple[int, int] | None", int, Iterator[float]], list[Span]]
"""`shape(unit, units, grid, room, draws)`: at most `room` spans inside the unit."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A kind of masked span: the candidate units, and the part of the drawn unit that is masked."""

    pool: Callable[[Units, tuple[int, int] | None], Sequence[Span]]
    shape: Shape


policy: Registry[Policy] = Registry("masking policy")


def _whole(
    unit: Span, found: Units, grid: tuple[int, int] | None, room: int, draws: Iterator[float]
) -> list[Span]:
    return [unit]


def _run(
    unit: Span, found: Units, grid: tuple[int, int] | None, room: int, draws: Iterator[float]
) -> list[Span]:
    """A run of codes of a picture, but not all of them."""
    size = unit.stop - unit.start
    length = 1 + int(next(draws) * (size - 1))
    start = unit.start + int(next(draws) * (size - length + 1))
    return [Span(start, start + length)]


def _words(
    unit: Span, found: Units, grid: tuple[int, int] | None, room: int, draws: Iterator[float]
) -> list[Span]:
    """A part of a run of text, between two distinct cuts."""
    low, high = bisect_left(found.cuts, unit.start), bisect_right(found.cuts, unit.stop) - 1
    if low >= high:
        return []
    first = low + int(next(draws) * (high - low + 1))
    second = low + int(next(draws) * (high - low))
    second += second >= first
    return [Span(found.cuts[min(first, second)], found.cuts[max(first, second)])]


def _box(
    unit: Span, found: Units, grid: tuple[int, int] | None, room: int, draws: Iterator[float]
) -> list[Span]:
    """A box of the grid of codes: one run per row, or a single run if it is as wide as the picture."""
    if grid is None:
        return []
    rows, columns = grid
    width = 1 + int(next(draws) * columns)
    height = 1 + int(next(draws) * (min(rows, room) if width < columns else rows))
    left, top = int(next(draws) * (columns - width + 1)), int(next(draws) * (rows - height + 1))
    start = unit.start + top * columns + left
    if width == columns:
        return [Span(start, start + height * columns)]
    return [Span(start + row * columns, start + row * columns + width) for row in range(height)]


def _boxable(found: Units, grid: tuple[int, int] | None) -> Sequence[Span]:
    return (
        [] if grid is None else [each for each in found.images if each.stop - each.start == grid[0] * grid[1]]
    )


policy("attribute_value")(Policy(lambda found, grid: found.values, _whole))
policy("element")(Policy(lambda found, grid: found.elements, _whole))
policy("full_segment")(Policy(lambda found, grid: found.segments, _whole))
policy("text_only")(Policy(lambda found, grid: found.texts, _words))
policy("image_full")(Policy(lambda found, grid: found.images, _whole))
policy("image_partial")(
    Policy(lambda found, grid: [each for each in found.images if each.stop - each.start > 1], _run)
)
policy("image_box")(Policy(_boxable, _box))
