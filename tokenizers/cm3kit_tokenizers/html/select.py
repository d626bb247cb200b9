"""Select gaps: an element's content by a CSS selector, `selector@attribute`, or a region of a picture."""

from __future__ import annotations

import bisect
import difflib
import re
from typing import Any

import turbohtml

from cm3kit_tokenizers.document import GapKind
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.html.gaps import Box, PageGap, ancestors, refuse, roomy
from cm3kit_tokenizers.html.spans import RAW_TEXT, SPACE, Element, Span, element, elements

_POINTER = re.compile(r"(?P<css>.*?)@(?P<attribute>[A-Za-z][\w:.-]*)\s*\Z", re.S)
_FRAGMENT: Any = turbohtml.DocumentFragment
_NAMES = re.compile(r"[.#]?[\w-]+")
_NAME_END = re.compile(r"[\t\n\f\r />]")
_ASSIGN = re.compile(r"[\t\n\f\r ]*=")
VOID = (
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track",
    "wbr",
)  # fmt: skip


def selected_gaps(text: str, tree: Any, css: str, codec: str) -> tuple[list[PageGap], list[str]]:
    """The gaps of `css` or `css@attribute`, and one line per match that cannot be filled.

    Content of `<template>` and `<noscript>` is not matched, as with `querySelectorAll` in a browser.

    Raises:
        PageError: bad_selector; gap_place if no match can be filled.
    """
    pointer = _POINTER.match(css)
    selector, name = (pointer["css"], pointer["attribute"].lower()) if pointer else (css, None)
    try:
        handles = tree.select(selector.encode(codec, "replace").decode("latin-1"))
    except turbohtml.SelectorSyntaxError as error:
        raise PageError(f"{error}; see CSS selectors.", code="bad_selector") from None
    handles = [each for each in handles if not _apart(each)]
    found = [match for match in (element(text, handle) for handle in handles) if match]
    if handles and not found:
        implied = f"<{handles[0].tag}> has no tag in the page, so its position is unknown"
        raise PageError(f"{css!r}: {implied}; select an element in it.", code="bad_selector")
    if not found:
        raise PageError(f"Nothing matches {css!r}{_nearest(tree, selector)}", code="bad_selector")
    if name:
        return [attribute_gap(text, match, name) for match in found], []
    sweep = _Tags(text, tree)
    gaps: list[PageGap] = []
    errors: list[PageError] = []
    for match in found:
        try:
            gaps.append(_content_gap(text, match, sweep))
        except PageError as error:
            errors.append(error)
    if not gaps:
        raise errors[0]
    kept: list[PageGap] = []
    for gap in sorted(gaps, key=lambda each: (each.start, -each.end)):
        if kept and gap.end <= kept[-1].end and gap.start < kept[-1].end:
            errors.append(refuse(text, gap.start, f"is inside another selected <{kept[-1].element}>"))
        else:
            kept.append(gap)
    return kept, [f"{css!r} skips a match. {error.args[0]}" for error in errors]


def _apart(handle: Any) -> bool:
    """Whether an element is in the content of `<template>`, or of `<noscript>`, which is text if scripts run."""
    return any(
        getattr(around, "tag", "") in ("template", "noscript") or isinstance(around, _FRAGMENT)
        for around in handle.ancestors
    )


def _nearest(tree: Any, selector: str) -> str:
    known: set[str] = set()
    for handle in tree.iter_elements():
        known.add(str(handle.tag))
        known.update("." + name for name in str(handle.attr("class") or "").split())
        known.update("#" + name for name in str(handle.attr("id") or "").split())
    for name in reversed(_NAMES.findall(selector)):
        close = [] if name in known else difflib.get_close_matches(name, sorted(known), 1)
        if close:
            return f"; did you mean {close[0]!r}?"
    return "; check the tags, classes and ids in the page."


def attribute_gap(text: str, found: Element, name: str) -> PageGap:
    """The gap for an attribute's value; the attribute is inserted if missing."""
    start, end = found.start
    if found.name == "img" and name == "src":
        kind: GapKind = "image"
    else:
        kind = "attribute"
    present = found.attributes.get(name)
    if present and present.value:
        before, after = ("", "") if present.quote else ('"', '"')
        return PageGap(0, kind, *present.value, found.name, name, 0, before=before, after=after)
    if present:
        assign = _ASSIGN.match(text, present.span[1], end)
        at = assign.end() if assign else present.span[1]
        before = '"' if assign else '="'
        # An equals sign without a value is directly followed by '>', before which a quote may be inserted.
        return PageGap(0, kind, at, at, found.name, name, 0, before=before, after='"')
    named = _NAME_END.search(text, start, end)
    at = named.start() if named else end - 1
    return PageGap(0, kind, at, at, found.name, name, 0, before=f' {name}="', after='"')


def _content_gap(text: str, found: Element, sweep: _Tags) -> PageGap:
    start = found.start[0]
    if not found.html:
        raise refuse(text, start, f"cannot be the content of SVG's or MathML's <{found.name}>")
    if found.name == "img":
        return attribute_gap(text, found, "src")
    if found.name in VOID:
        raise PageError(
            f"<{found.name}> has no content; select an attribute: {found.name}@name.", code="bad_selector"
        )
    if found.name in (*RAW_TEXT, "template"):
        raise refuse(text, start, f"is in a <{found.name}>")
    first, last = sweep.content(found)
    around = (*ancestors(found.handle), found.name)
    return roomy(text, PageGap(0, "content", first, last, found.name, None, 0, inside=around), found.name)


class _Tags:
    """Positions of all tags of a page, and their matching tags."""

    def __init__(self, text: str, tree: Any) -> None:
        self.text = text
        pairs = [(found.start, found.end) for found in elements(text, tree)]
        both = [(start, end) for start, end in pairs] + [(end, start) for start, end in pairs if end]
        both.sort()
        self.partners = both
        self.starts = [span[0] for span, _ in both]

    def content(self, found: Element) -> Span:
        """The bytes between an element's tags; gap_place if they overlap other elements."""
        first = found.start[1]
        last = found.end[0] if found.end else self._implied_end(found)
        inner = self.partners[bisect.bisect_left(self.starts, first) : bisect.bisect_left(self.starts, last)]
        if any(partner and not first <= partner[0] < last for _, partner in inner):
            raise refuse(self.text, found.start[0], f"needs <{found.name}> to be closed in order")
        return first, last

    def _implied_end(self, found: Element) -> int:
        """End of an element without an end tag: its parent's end, or the next element's start."""
        first = found.start[1]
        closing, last = None, len(self.text)
        for around in found.handle.ancestors:
            where = getattr(around, "source_location", None)
            if where and where.end_tag and where.end_tag.start_offset >= first:
                closing, last = around, where.end_tag.start_offset
                break
        for later in found.handle.following:
            if closing is not None and closing not in later.ancestors:
                break
            where = getattr(later, "source_location", None)
            if where and where.start_tag.start_offset >= first:
                last = min(last, where.start_tag.start_offset)
                break
            if isinstance(later, turbohtml.Text) and str(later.data).strip():
                raise refuse(self.text, found.start[0], f"needs <{found.name}> to be closed in order")
        while last > first and self.text[last - 1] in SPACE:
            last -= 1
        return last


def region_gap(text: str, tree: Any, name: str, box: Box, codec: str) -> tuple[PageGap, str]:
    """The gap for a region of the picture whose `src` is, or ends with, `name`; and that `src`.

    Raises:
        PageError: bad_selector if none or several match, bad_box for a malformed box.
    """
    if min(box[:2]) < 0 or min(box[2:]) < 1:
        raise PageError(
            f"The box {','.join(map(str, box))} is malformed; give x,y,width,height in pixels.",
            code="bad_box",
        )
    pictures = [
        (match, readable(str(match.handle.attr("src") or ""), codec).strip(SPACE))
        for match in elements(text, tree)
        if match.html and match.name == "img"
    ]
    wanted = [(match, src) for match, src in pictures if src == name] or [
        (match, src) for match, src in pictures if name and src.endswith(name)
    ]
    if len(wanted) != 1:
        close = difflib.get_close_matches(name, [src for _, src in pictures], 1, 0.3)
        hint = f"; did you mean {close[0]!r}?" if close and not wanted else "; give the whole src of one."
        raise PageError(f"{len(wanted)} pictures match {name!r}{hint}", code="bad_selector")
    match, src = wanted[0]
    gap = attribute_gap(text, match, "src")
    return PageGap(
        0, "image", gap.start, gap.end, "img", "src", 0, box=box, before=gap.before, after=gap.after
    ), src


def readable(value: str, codec: str) -> str:
    """An attribute's value of the view, decoded in the page's encoding if possible."""
    try:
        return value.encode("latin-1").decode(codec)
    except (UnicodeDecodeError, UnicodeEncodeError):
        return value
