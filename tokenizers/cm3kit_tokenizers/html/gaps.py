"""Find written gaps: `<mask>` or `<mask size=12>`, in text and inside attribute values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cm3kit_tokenizers.document import GapKind
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.html.gap_attributes import WRITTEN, constraint_of, size_of, told
from cm3kit_tokenizers.html.spans import (
    RAW_TEXT,
    Attribute,
    Element,
    Span,
    elements,
    line_of,
    parse_tree,
    runs,
)

Box = tuple[int, int, int, int]

ROOMS: dict[str, tuple[str, ...] | None] = {
    "table": ("tr", "td"), "tbody": ("tr", "td"), "thead": ("tr", "td"), "tfoot": ("tr", "td"), "tr": ("td",),
    "td": (), "th": (), "caption": (),
    **dict.fromkeys(
        ("colgroup", "head", "frameset", "select", "optgroup", "datalist", "picture", "video", "audio", "object",
         "canvas", "map", "ruby"),
    ),
}  # fmt: skip
"""For elements that cannot contain text: the elements to wrap it in; None if there are none."""

_TAG = re.compile(r"<mask(?=[\s/>])", re.I)
# The end tag of a gap, optionally after the text that the gap replaces.
_CLOSE = re.compile(r"[^<]*</mask\s*/?>", re.I)
_END = re.compile(r"</mask(?=[\s/>])", re.I)


@dataclass(frozen=True, slots=True)
class PageGap:
    """A gap in a page's bytes: a fill replaces `data[start:end]`.

    Args:
        index: position among the page's gaps, in source order.
        kind: content, attribute, or image (the `src` of an `<img>`).
        start: first byte.
        end: the byte after the last; equal to `start` if a missing attribute is inserted.
        element: name of the element of the content or attribute.
        attribute: name of the attribute, or None.
        line: line in the source, from 1.
        box: (x, y, width, height) in pixels if only a region of a picture is missing.
        before: source written before a fill, such as ` alt="`.
        after: source written after it.
        inside: names of the elements around it, outermost first.
        size: the requested approximate number of tokens, or None.
        constraint: kind and value of what may stand in it, or None.
    """

    index: int
    kind: GapKind
    start: int
    end: int
    element: str
    attribute: str | None
    line: int
    box: Box | None = None
    before: str = ""
    after: str = ""
    inside: tuple[str, ...] = ()
    size: int | None = None
    constraint: tuple[str, str] | None = None


def refuse(text: str, offset: int, where: str) -> PageError:
    """A gap_place error with its line number."""
    return PageError(f"Line {line_of(text, offset)}: a gap {where}.", code="gap_place")


def ancestors(handle: Any) -> tuple[str, ...]:
    """Names of the elements around a node, outermost first."""
    names = [str(node.tag) for node in handle.ancestors if hasattr(node, "tag")]
    return tuple(name for name in reversed(names) if name != "mask")


def written_gaps(text: str, tree: Any) -> list[PageGap]:
    """Every `<mask>` of the view as a gap, in source order.

    Raises:
        PageError: gap_place for a gap in raw text, a comment, a tag's or an attribute's name, or where its
            element cannot contain text, and for an unmatched `</mask>`; bad_value for an invalid size.
    """
    if not _TAG.search(text) and not _END.search(text):
        return []
    # Each with the start of its parent element's tag.
    gaps: list[tuple[PageGap, int]] = []
    foreign: set[int] = set()
    rooms = _Rooms()
    tags: list[tuple[Span, str]] = []
    for found in elements(text, tree):
        tags.append((found.start, ""))
        if found.html and found.name in RAW_TEXT:
            tags.append((_content(text, found), found.name))
        rooms.add(text, found)
        if found.name == "mask" and not found.html:
            foreign.update((found.start[0], found.end[0] if found.end else -1))
        if "<mask" in text[slice(*found.start)].lower():
            gaps += [(gap, _parent_start(found)) for gap in _of_element(text, found)]
        if found.html and found.name == "title":
            gaps += [(gap, found.start[0]) for gap in _in_title(text, found)]
    found_at = {gap.start for gap, _ in gaps} | foreign
    for match in _TAG.finditer(text):
        if match.start() not in found_at and WRITTEN.match(text, match.start()):
            raise refuse(text, match.start(), _why(match.start(), tags))
    ordered = in_order(text, [rooms.fitted(text, *each) for each in gaps])
    _no_stray_ends(text, tree, ordered, foreign)
    return ordered


def _no_stray_ends(text: str, tree: Any, gaps: Sequence[PageGap], foreign: set[int]) -> None:
    """PageError (gap_place) for an end tag `</mask>` that ends no gap."""
    ends = [found.start() for found in _END.finditer(text)]
    ends = [at for at in ends if at not in foreign and not any(gap.start <= at < gap.end for gap in gaps)]
    if not ends:
        return
    tags = {run.start for run in runs(text, tree) if run.kind == "tag"}
    for at in ends:
        if at in tags:
            raise PageError(
                f"Line {line_of(text, at)}: </mask> ends no gap; write only <mask>, or <mask>words</mask> without"
                " tags between.",
                code="gap_place",
            )


def _parent_start(found: Element) -> int:
    """Start of the tag of an element's parent; -1 if it has none."""
    for around in found.handle.ancestors:
        where = getattr(around, "source_location", None)
        if where and around.tag != "mask":
            return int(where.start_tag.start_offset)
    return -1


class _Rooms:
    """Byte ranges of elements that contain rows, cells or options, but no text."""

    def __init__(self) -> None:
        # Start and end of the content, name; inner elements come later.
        self.places: list[tuple[int, int, str]] = []

    def add(self, text: str, found: Element) -> None:
        """Add an element of the page."""
        if found.html and found.name in ROOMS:
            first = found.start[1]
            last = found.end[0] if found.end else _row_end(text, first, found)
            self.places.append((first, last, found.name))

    def fitted(self, text: str, gap: PageGap, parent_start: int) -> PageGap:
        """The gap with the tags that text needs there: `<td>` in a row, `<tr><td>` in a table.

        The parser moves such text before the table, so its position cannot be found in the tree.
        """
        around = [place for place in self.places if place[0] <= gap.start and gap.end <= place[1]]
        if gap.kind != "content" or not around or parent_start >= max(around)[0]:
            return gap
        return roomy(text, gap, max(around)[2])


def roomy(text: str, gap: PageGap, name: str) -> PageGap:
    """A content gap of the element `name` with the tags that text needs there; gap_place if there are none."""
    inner = ROOMS.get(name, ())
    if inner is None:
        raise refuse(text, gap.start, f"is in a <{name}>, which cannot contain text; select an element in it")
    if not inner:
        return gap
    inside = gap.inside
    if inside[-1:] != (name,):
        # The tree has the gap before the table, with the same ancestors as the table.
        inside = (*inside, name) if name == "table" else (*inside, "table", name)
    before = "".join(f"<{each}>" for each in inner)
    after = "".join(f"</{each}>" for each in reversed(inner))
    return replace(gap, element=name, before=before, after=after, inside=(*inside, *inner))


def _row_end(text: str, first: int, found: Element) -> int:
    """Latest end of an element without an end tag: the end of its table."""
    for around in found.handle.ancestors:
        where = getattr(around, "source_location", None)
        if where and where.end_tag and where.end_tag.start_offset >= first:
            return int(where.end_tag.start_offset)
    return len(text)


def _content(text: str, found: Element) -> Span:
    return found.start[1], found.end[0] if found.end else len(text)


def _of_element(text: str, found: Element) -> Iterator[PageGap]:
    if found.name == "mask" and found.html:
        start, end = found.start
        close = _CLOSE.match(text, end)
        around = ancestors(found.handle)
        parent = around[-1] if around else "body"
        if text[start - 1 : start] == "<":
            raise refuse(text, start, "directly follows '<'; write it as '&lt;'")
        stop, given = close.end() if close else end, found.attributes.get("size")
        size = None if given is None else size_of(text, start, text[slice(*(given.value or (0, 0)))])
        named = {name: text[slice(*(each.value or (0, 0)))] for name, each in found.attributes.items()}
        constraint = constraint_of(text, start, named)
        yield PageGap(
            0, "content", start, stop, parent, None, 0, inside=around, size=size, constraint=constraint
        )
        return
    for value in found.attributes.values():
        yield from _in_attribute(text, found, value)


def _in_attribute(text: str, found: Element, value: Attribute) -> Iterator[PageGap]:
    if value.value is None or "<mask" not in text[slice(*value.value)].lower():
        return
    start, end = value.value
    if not value.quote:
        raise refuse(text, start, f'is in an unquoted value; write {value.name}="<mask>"')
    kind: GapKind = "image" if (found.name, value.name) == ("img", "src") else "attribute"
    whole = text[start:end].strip()
    after = start
    for match in WRITTEN.finditer(text, start, end):
        if match.start() < after:
            continue
        close = _CLOSE.match(text, match.end(), end)
        after = close.end() if close else match.end()
        written = text[match.start() : after]
        if kind == "image" and whole != written:
            raise refuse(text, match.start(), 'fills only part of src; write src="<mask>"')
        size, constraint = told(text, match)
        if kind == "image" and (size is not None or constraint is not None):
            raise refuse(text, match.start(), 'has the size of its picture, and no words; write src="<mask>"')
        yield PageGap(
            0, kind, match.start(), after, found.name, value.name, 0, size=size, constraint=constraint
        )


def _in_title(text: str, found: Element) -> Iterator[PageGap]:
    start, end = _content(text, found)
    for match in WRITTEN.finditer(text, start, end):
        if text[match.start() - 1] == "<" and match.start() > start:
            raise refuse(text, match.start(), "directly follows '<'; write it as '&lt;'")
        close = _CLOSE.match(text, match.end(), end)
        stop = close.end() if close else match.end()
        around, (size, constraint) = (*ancestors(found.handle), "title"), told(text, match)
        yield PageGap(
            0,
            "content",
            match.start(),
            stop,
            "title",
            None,
            0,
            inside=around,
            size=size,
            constraint=constraint,
        )


def _why(offset: int, tags: list[tuple[Span, str]]) -> str:
    for (start, end), raw in tags:
        if start <= offset < end:
            return f"is in a <{raw}>" if raw else "is in a tag's or an attribute's name"
    return "is in a comment, or where HTML allows no text"


def in_order(text: str, gaps: list[PageGap]) -> list[PageGap]:
    """Gaps sorted by position, numbered, with line numbers; PageError (gap_overlap) if two share bytes."""
    ordered = sorted(gaps, key=lambda gap: (gap.start, gap.end, gap.attribute or ""))
    for left, right in itertools.pairwise(ordered):
        same = (left.start, left.end, left.attribute) == (right.start, right.end, right.attribute)
        if right.start < left.end or same:
            raise PageError(
                f"Line {line_of(text, right.start)}: the gap in <{right.element}> overlaps the one in"
                f" <{left.element}> on line {line_of(text, left.start)}; keep one of them.",
                code="gap_overlap",
            )
    lines = _lines(text, [gap.start for gap in ordered])
    return [
        replace(gap, index=index, line=line)
        for index, (gap, line) in enumerate(zip(ordered, lines, strict=True))
    ]


def _lines(text: str, offsets: list[int]) -> list[int]:
    lines: list[int] = []
    line, at = 1, 0
    for offset in offsets:
        line += text.count("\n", at, offset)
        at = offset
        lines.append(line)
    return lines


def without_gaps(text: str, gaps: tuple[PageGap, ...]) -> Any:
    """The tree with every written `<mask>` as text, so that it contains no nodes."""
    parts: list[str] = []
    at = 0
    for gap in gaps:
        if not _TAG.match(text, gap.start):
            continue
        parts += [text[at : gap.start], "x" * (gap.end - gap.start)]
        at = gap.end
    return parse_tree("".join((*parts, text[at:])))
