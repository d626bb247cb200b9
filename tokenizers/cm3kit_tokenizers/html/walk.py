"""Walk a parsed page, and collect its minimal HTML in an outline."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import turbohtml

from cm3kit_tokenizers.document import Gap, Picture, Piece
from cm3kit_tokenizers.html.gaps import PageGap
from cm3kit_tokenizers.html.nesting import INLINE
from cm3kit_tokenizers.html.outline import (
    ATOM,
    BREAK,
    META,
    OPEN_INLINE,
    OPENS,
    PIECES,
    Event,
    Frame,
    Outline,
    collapse,
)
from cm3kit_tokenizers.html.spans import HTML
from cm3kit_tokenizers.vocab import ATTRIBUTES, PLAIN

RENAMED = {"b": "strong", "i": "em"}
HIDDEN = frozenset({"script", "style", "template", "iframe", "noembed", "noframes", "textarea", "input"})
# Dropped with their content, unless it has a gap.
BARE = frozenset(
    "header footer nav dialog noscript button select option optgroup datalist output progress meter label"
    " legend".split()
)
# Unwrapped, with word boundaries before and after.
BLOCKS = frozenset(
    "address article aside body center details dir fieldset form hgroup hr listing main menu search section"
    " summary xmp caption plaintext".split()
)
# Elements of any name space that are unwrapped without boundaries. The parser removes them before the walk, as they
# are about half of all elements.
CLEAR = (
    "span,tbody,thead,tfoot,link,wbr,font,u,s,small,big,tt,kbd,samp,var,cite,q,abbr,acronym,time,mark,del,ins,sub,sup,"
    "nobr,bdi,bdo,dfn,data"
)
# Lone surrogates: neither bytes of a page nor character references decode to them.
MARK = re.compile("\ud800([0-9]+)\ud801")
"""Matches the output of `mark`, with the index of the gap."""
_UNEVEN = re.compile(r"[\t\n\f\r]|  ")

ELEMENT: Any = turbohtml.Element
TEXT: Any = turbohtml.Text

_PLAIN, _LINK, _VOID, _BREAK, _HIDDEN, _BARE, _BLOCK, _RULE, _SVG = range(9)
_RULES: dict[str, tuple[int, str]] = {
    **{name: (_BLOCK, name) for name in BLOCKS},
    **{name: (_BARE, name) for name in BARE},
    **{name: (_HIDDEN, name) for name in HIDDEN},
    **{name: (_PLAIN, name) for name in PLAIN},
    **{name: (_PLAIN, meant) for name, meant in RENAMED.items()},
    "a": (_LINK, "a"), "img": (_VOID, "img"), "meta": (_VOID, "meta"), "br": (_BREAK, "br"),
    "hr": (_RULE, "hr"), "svg": (_SVG, "svg"),
}  # fmt: skip
_ATTRIBUTES = {
    name: [(attribute, PIECES[f' {attribute}="']) for attribute in attributes]
    for name, attributes in ATTRIBUTES.items()
}
_BEGIN = {name: PIECES[f"<{name}"] for name in ATTRIBUTES}
_QUOTE, _END, _CONTENT = PIECES['"'], PIECES[">"], PIECES[' content="']
_LINE_BREAK = (PIECES["<br>"],)

# Markers for elements without a frame: nothing; a space; already ended, including its content.
_NOTHING, _SPACED, _ENDED = (Frame("", 0, 0) for _ in range(3))
_NOTHING.closed = _SPACED.closed = _ENDED.closed = True


def mark(index: int) -> str:
    """Placeholder of a gap while a page is parsed."""
    return f"\ud800{index}\ud801"


class Walk:
    """Converts elements and text of a tree to an outline."""

    def __init__(self, gaps: Sequence[PageGap], usable: Callable[[str], bool]) -> None:
        self.gaps = gaps
        self.usable = usable
        self.outline = Outline(bool(gaps))
        self.seen: set[int] = set()
        self.foreign = False

    def events(self, tree: Any) -> list[Event | str]:
        """The outline of a tree. The tree is modified: captions move before their tables, elements are removed.

        One iterator gives the nodes in order; an element's end follows from the number of its children. Lists of
        children for every element would take several times as long.
        """
        for caption in tree.select("table > caption"):
            caption.parent.insert_before(caption)
        tree.strip_tags(CLEAR)
        tree.root.normalize()
        self.foreign = tree.find("svg") is not None or tree.find("math") is not None
        outline, text = self.outline, self._text if self.gaps else self.outline.text
        ends: list[tuple[int, Frame]] = []
        left, rules = len(tree), _RULES
        nodes = iter(tree.descendants)
        for node in nodes:
            left -= 1
            kind = type(node)
            if kind is TEXT:
                text(node.data)
            else:
                if kind is not ELEMENT:
                    end = _ENDED
                elif (rule := rules.get(node.tag)) is None:
                    end = _NOTHING
                elif rule[0] != _PLAIN or self.foreign:
                    end = self._element(node, *rule)
                else:
                    name = rule[1]
                    end = outline.open(name, OPENS[name]) or self._unwrapped(name)
                if count := len(node):
                    if end is _ENDED:
                        _skip(nodes, count)
                    else:
                        ends.append((left, end))
                        left = count
                        continue
                elif not end.closed:
                    outline.close(end)
                elif end is _SPACED:
                    outline.space()
            while not left and ends:
                left, end = ends.pop()
                if not end.closed:
                    outline.close(end)
                elif end is _SPACED:
                    outline.space()
        return outline.finish()

    def _text(self, text: str) -> None:
        """Add a run of text with its gaps."""
        for piece in self._split(text):
            if isinstance(piece, str):
                self.outline.text(piece)
            else:
                self.outline.atom(ATOM, (piece,), gap=True)

    def _element(self, element: Any, what: int, name: str) -> Frame:
        """Add a void element, or open an element; returns its frame or marker."""
        if self.foreign and element.namespace is not HTML:
            return self.outline.open_unless_bare() if what == _SVG else _NOTHING
        if what == _PLAIN:
            return self.outline.open(name, OPENS[name]) or self._unwrapped(name)
        if what == _LINK:
            pieces = self._attributes(name, element)
            event = (OPEN_INLINE, (_BEGIN[name], *pieces, _END))
            return (self.outline.open(name, event) if pieces else None) or _NOTHING
        elif what == _BARE:
            return self.outline.open_unless_bare()
        elif what != _BLOCK:
            self._void(what, name, element)
            return _NOTHING if what == _SVG else _ENDED
        self.outline.space()
        return _SPACED

    def _unwrapped(self, name: str) -> Frame:
        """The marker of an element that is not allowed where it is."""
        if name in INLINE:
            return _NOTHING
        self.outline.space()
        return _SPACED

    def _void(self, what: int, name: str, element: Any) -> None:
        if what == _BREAK:
            self.outline.atom(BREAK, _LINE_BREAK)
        elif what == _RULE:
            self.outline.space()
        elif what == _VOID:
            pieces = self._attributes(name, element)
            if pieces and (name == "img" or _CONTENT in pieces):
                self.outline.atom(META if name == "meta" else ATOM, (_BEGIN[name], *pieces, _END))

    def _attributes(self, name: str, element: Any) -> list[Piece]:
        """Kept attributes in alphabetical order, without empty ones."""
        pieces: list[Piece] = []
        for attribute, piece in _ATTRIBUTES[name]:
            value = element.attr(attribute)
            if value:
                if _UNEVEN.search(value):
                    value = collapse(value)
                if found := self._value(name, attribute, value.strip(" ")):
                    pieces += (piece, *found, _QUOTE)
        return pieces

    def _value(self, name: str, attribute: str, value: str) -> tuple[Piece, ...]:
        picture = attribute == "src"
        if not self.gaps:
            if not picture:
                return (value,) if value else ()
            return (Picture(value),) if value and self.usable(value) else ()
        found = self._split(value)
        gaps = [piece for piece in found if isinstance(piece, Gap)]
        # The parser duplicates misnested elements with their attributes; a gap is used once.
        if any(gap.index in self.seen for gap in gaps):
            return ()
        self.seen.update(gap.index for gap in gaps)
        if not picture:
            return tuple(found)
        src = "".join(piece for piece in found if isinstance(piece, str))
        if gaps:
            box = self.gaps[gaps[0].index].box
            return (Picture(src, box, gaps[0].index),) if box else (gaps[0],)
        return (Picture(src),) if src and self.usable(src) else ()

    def _split(self, text: str) -> list[str | Gap]:
        found: list[str | Gap] = []
        for i, part in enumerate(MARK.split(text)):
            if i % 2:
                gap = self.gaps[int(part)]
                found.append(Gap(int(part), gap.kind, size=gap.size))
            elif part:
                found.append(part)
        return found


def _skip(nodes: Iterator[Any], count: int) -> None:
    """Skip `count` children with their content."""
    while count:
        count += len(next(nodes)) - 1
