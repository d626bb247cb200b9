"""Exact byte spans of a page's tags, attributes, text and comments: an adapter of turbohtml.

turbohtml parses a latin-1 view of the bytes, so that one code point is one byte. It counts CR LF once;
the view writes CR LF as space LF, so its offsets are byte offsets. Trees are never serialised: callers
replace byte ranges of the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import turbohtml

from cm3kit_tokenizers.errors import PageError

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 500
_STRIDE = 100
SPACE = "\t\n\f\r "
RAW_TEXT = ("script", "style", "textarea", "iframe", "xmp", "noembed", "noframes", "plaintext")

HTML: Any = turbohtml.Namespace.HTML

Span = tuple[int, int]
RunKind = Literal["tag", "text", "comment"]

_MARKUP = re.compile(r"<!--(?:-?>|.*?(?:--!?>|\Z))|<[!?][^>]*>?|</?[a-zA-Z]|</[^>]*>?", re.S)
_TAG_REST = re.compile(r"""(?:[^>"'=]|=\s*(?:"[^"]*"|'[^']*')?|["'])*>?""", re.S)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a start tag; `value` excludes the quotes and is None for `alt` or `alt=` alone."""

    name: str
    span: Span
    value: Span | None
    quote: str


@dataclass(frozen=True, slots=True)
class Element:
    """One element with a start tag in the source; `end` is None if it has no end tag."""

    name: str
    html: bool
    start: Span
    end: Span | None
    attributes: dict[str, Attribute]
    handle: Any


@dataclass(frozen=True, slots=True)
class Run:
    """A byte range that is one tag, one comment or declaration, or text between those."""

    kind: RunKind
    start: int
    end: int


def view(data: bytes) -> str:
    """One character per byte: latin-1, with a byte-order mark and the CR of CR LF replaced by spaces.

    Raises:
        PageError: empty_file, or page_too_large over 16 MiB.
    """
    if not data:
        raise PageError("The page is empty; give a file with HTML in it.", code="empty_file")
    if len(data) > MAX_BYTES:
        raise PageError(
            f"The page has {len(data):,} bytes; the limit is {MAX_BYTES:,}. Split it.", code="page_too_large"
        )
    if data.startswith(b"\xef\xbb\xbf"):
        data = b"   " + data[3:]
    return data.decode("latin-1").replace("\r\n", " \n")


def parse_tree(text: str, locations: bool = True) -> Any:
    """A turbohtml document, optionally with source locations; page_too_deep over 500 nested elements."""
    tree = turbohtml.parse(
        text, positions=locations, source_locations=locations, allow_declarative_shadow_roots=False
    )
    if text.count("<") > MAX_DEPTH and _may_be_deep(tree):
        _check_depth(tree)
    return tree


def _may_be_deep(tree: Any) -> bool:
    """Whether an element may be too deep, testing every 100th: each is at most two deeper than the one before."""
    few = islice(tree.iter_elements(), 0, None, _STRIDE)
    return any(sum(1 for _ in each.ancestors) > MAX_DEPTH - 2 * _STRIDE for each in few)


def _check_depth(tree: Any) -> None:
    """PageError below the depth (512) at which the parser flattens elements, as browsers do."""
    stack: list[tuple[Any, int]] = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise PageError(
                f"Elements are nested more than {MAX_DEPTH:,} deep; close them or split the page.",
                code="page_too_deep",
            )
        stack.extend((child, depth + 1) for child in node.children if is_container(child))


def is_container(node: Any) -> bool:
    """Whether a node of the tree can have children."""
    return isinstance(node, turbohtml.Element | turbohtml.DocumentFragment)


def is_html(element: Any) -> bool:
    """Whether an element is HTML's own, not SVG's or MathML's."""
    return element.namespace is HTML


def attribute(text: str, name: str, start: int, end: int) -> Attribute:
    """Split `name = "value"` at `start:end` of the view; a name may start with an equals sign."""
    equals = text.find("=", start + 1, end)
    if equals < 0:
        return Attribute(name, (start, end), None, "")
    first = equals + 1
    while first < end and text[first] in SPACE:
        first += 1
    if text[first : first + 1] in ('"', "'"):
        return Attribute(name, (start, end), (first + 1, end - 1), text[first])
    return Attribute(name, (start, end), (first, end), "")


def element(text: str, handle: Any) -> Element | None:
    """The spans of one element of the tree, or None if the source has no tag for it."""
    where = handle.source_location
    if where is None:
        return None
    end = where.end_tag and (where.end_tag.start_offset, where.end_tag.end_offset)
    attributes = {
        name: attribute(text, name, span.start_offset, span.end_offset) for name, span in where.attrs.items()
    }
    start = (where.start_tag.start_offset, where.start_tag.end_offset)
    return Element(handle.tag, is_html(handle), start, end, attributes, handle)


def elements(text: str, tree: Any) -> Iterator[Element]:
    """Every element with a tag in the source, in tree order."""
    for handle in tree.iter_elements():
        found = element(text, handle)
        if found is not None:
            yield found


def runs(text: str, tree: Any) -> Iterator[Run]:
    """Split the whole view into tags, comments and text, in order and contiguous."""
    tags: list[Span] = []
    raw: list[Span] = []
    for found in elements(text, tree):
        tags.append(found.start)
        tags += [found.end] if found.end else []
        if found.html and found.name in (*RAW_TEXT, "title"):
            raw.append((found.start[1], found.end[0] if found.end else len(text)))
    raw_starts = dict(raw)
    at = 0
    for start, end in [*sorted(tags), (len(text), len(text))]:
        if start < at:
            continue
        if at in raw_starts and at < start:
            yield Run("text", at, start)
        else:
            yield from _between(text, at, start)
        if end > start:
            yield Run("tag", start, end)
        at = end


def _between(text: str, at: int, end: int) -> Iterator[Run]:
    """Text, comments and ignored tags between two tags of the tree."""
    while at < end:
        found = _MARKUP.search(text, at, end)
        if found is None:
            yield Run("text", at, end)
            return
        if found.start() > at:
            yield Run("text", at, found.start())
        comment = text[found.start() + 1] in "!?" or not text[found.end() - 1].isalpha()
        rest = None if comment else _TAG_REST.match(text, found.end(), end)
        at = found.end() if rest is None else rest.end()
        yield Run("comment" if comment else "tag", found.start(), at)


def line_of(text: str, offset: int) -> int:
    """The line number of an offset, from 1."""
    return text.count("\n", 0, offset) + 1
