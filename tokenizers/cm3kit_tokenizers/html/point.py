"""Select gaps by position: text between two byte offsets, or a picture by the offset of its tag."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.html.gaps import Box, PageGap, ancestors, refuse
from cm3kit_tokenizers.html.select import VOID, attribute_gap, readable
from cm3kit_tokenizers.html.spans import RAW_TEXT, SPACE, Element, Span, elements, runs

_UNIT = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);?|\r\n|.", re.S)


def words_gap(text: str, tree: Any, start: int, end: int) -> PageGap:
    """The gap for the text at `start:end` of the view, without surrounding white space.

    It is extended to elements that it cuts through.

    Raises:
        PageError: gap_place if nothing is left, an element has no end, or the text is not shown on the page.
    """
    start, end = max(0, start), min(end, len(text))
    while start < end and text[start] in SPACE:
        start += 1
    while end > start and text[end - 1] in SPACE:
        end -= 1
    if start >= end:
        raise refuse(text, min(start, len(text)), "contains no text; select some")
    found = list(elements(text, tree))
    start, end = _widened(text, found, (start, end))
    for each in found:
        raw = not each.html or each.name in (*RAW_TEXT, "template")
        last = each.end[0] if each.end else each.start[1]
        if raw and (each.start[1] <= start < last):
            raise refuse(text, start, f"is in a <{each.name}>")
    if not any(run.kind == "text" and run.start < end and run.end > start for run in runs(text, tree)):
        raise refuse(text, start, "contains no text; select some")
    around = _around(text, found, start, end)
    return PageGap(0, "content", start, end, around[-1] if around else "body", None, 0, inside=around)


def _widened(text: str, found: list[Element], span: Span) -> Span:
    """The span extended to whole elements; gap_place if one has no end tag."""
    start, end = span
    while True:
        before = (start, end)
        for each in found:
            opens = start < each.start[1] and each.start[0] < end
            if each.end is None:
                if opens and each.html and each.name not in VOID:
                    raise refuse(text, each.start[0], f"includes a <{each.name}> that has no end tag")
                if opens:
                    start, end = min(start, each.start[0]), max(end, each.start[1])
                continue
            closes = start < each.end[1] and each.end[0] < end
            if opens or closes:
                start, end = min(start, each.start[0]), max(end, each.end[1])
        if (start, end) == before:
            return start, end


def _around(text: str, found: list[Element], start: int, end: int) -> tuple[str, ...]:
    """Names of the elements around a span, outermost first."""
    inner = None
    for each in found:
        last = each.end[0] if each.end else len(text)
        void = each.end is None and each.name in VOID
        if (
            each.start[1] <= start
            and end <= last
            and not void
            and (inner is None or each.start > inner.start)
        ):
            inner = each
    return (*ancestors(inner.handle), inner.name) if inner else ()


def picture_gap(text: str, tree: Any, offset: int, box: Box | None, codec: str) -> tuple[PageGap, str]:
    """The gap for the picture whose tag starts at `offset`, or for a region of it; and its `src`.

    Raises:
        PageError: bad_selector if no picture starts there, bad_box for a malformed box.
    """
    if box is not None and (min(box[:2]) < 0 or min(box[2:]) < 1):
        shown = ",".join(map(str, box))
        raise PageError(f"The box {shown} is malformed; give x,y,width,height in pixels.", code="bad_box")
    for each in elements(text, tree):
        if each.start[0] == offset and each.html and each.name == "img":
            gap = attribute_gap(text, each, "src")
            src = readable(str(each.handle.attr("src") or ""), codec).strip(SPACE)
            return PageGap(
                0, "image", gap.start, gap.end, "img", "src", 0, box=box, before=gap.before, after=gap.after
            ), src
    raise PageError(f"No picture's tag starts at byte {offset}; reload the page.", code="bad_selector")


def byte_offset(run: bytes, codec: str, units: int, after: bool) -> int:
    """Byte offset in a run of text after its first `units` UTF-16 units, as browsers count them.

    Args:
        run: the source of the text, with character references.
        after: whether a reference that contains the position is included.

    Raises:
        PageError: not_html if the run does not round-trip in its encoding.
    """
    text = run.decode(codec, "replace")
    if len(text.encode(codec, "replace")) != len(run):
        raise PageError(
            "These words are not in the encoding of the page; mark them with <mask>.", code="not_html"
        )
    at = seen = 0
    for source, read in units_of(text):
        if seen >= units:
            break
        width = sum(2 if ord(each) > 0xFFFF else 1 for each in read)
        if seen + width > units and not after:
            break
        seen += width
        at += len(source.encode(codec, "replace"))
    return at


def units_of(text: str) -> Iterator[tuple[str, str]]:
    """Characters and character references of a source, each with its decoded text."""
    at = 0
    while found := _UNIT.match(text, at):
        source = found[0]
        read = "\n" if source == "\r\n" else html.unescape(source) if source[0] == "&" else source
        if source[0] == "&" and read == source:
            source = read = "&"
        yield source, read
        at += len(source)
