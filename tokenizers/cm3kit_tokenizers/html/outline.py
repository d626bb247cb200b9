"""Reduce a page to CM3's minimal HTML: no empty elements, nested divs folded (arXiv:2201.07520, sec. 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cm3kit_tokenizers.document import Gap, Markup, Picture, Piece
from cm3kit_tokenizers.html.nesting import (
    CLOSED_BY,
    INLINE,
    MODES,
    NOTHING,
    OUTSIDE,
    ROW_PARENT,
    TEXT_ONLY,
    TOUCHY,
    Stack,
)
from cm3kit_tokenizers.vocab import MARKUP, PLAIN

SPACE = " \t\n\f\r"

PIECES = {piece: Markup(piece) for piece in MARKUP}
"""The pieces of minimal HTML, created once, since pages have many."""


def collapse(text: str) -> str:
    """Text with white space collapsed; several times as fast as a regular expression."""
    for space in "\t\n\f\r":
        text = text.replace(space, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text


# Kinds of events: inline start tag, atom in text, inline end tag, meta, line break, other tags.
OPEN_INLINE, ATOM, CLOSE_INLINE, META, BREAK, OPEN, CLOSE, OPEN_PRE, CLOSE_PRE = range(9)

Event = tuple[int, tuple[Piece, ...]]
"""A start tag with its attributes, an end tag, or an atom in the flow; text is an event as a string."""


def _events(kinds: Sequence[int], names: Iterable[str], end: str) -> dict[str, Event]:
    inline, other, pre = kinds
    kind = {name: inline for name in INLINE} | {"pre": pre}
    return {name: (kind.get(name, other), (PIECES[f"<{end}{name}>"],)) for name in names}


OPENS = _events((OPEN_INLINE, OPEN, OPEN_PRE), PLAIN, "")
CLOSES = _events((CLOSE_INLINE, CLOSE, CLOSE_PRE), (*PLAIN, "a"), "/")

# Content of an element so far: nothing, exactly one div, or anything else.
_EMPTY, _ONE_DIV, _MORE = range(3)


class Frame:
    """An open element; `start` is the index of its start tag's event."""

    closed = solid = False
    content = _EMPTY

    def __init__(self, name: str, start: int, gaps: int) -> None:
        self.name, self.start, self.gaps = name, start, gaps


class Outline:
    """Collects events of a tree walk; the result is balanced and parses back to itself.

    `with_gaps` is whether there may be gaps among the pieces.
    """

    def __init__(self, with_gaps: bool) -> None:
        self.with_gaps = with_gaps
        self.events: list[Event | str | None] = []
        self.frames: list[Frame] = [Frame(OUTSIDE, 0, 0)]
        self.stack = Stack([OUTSIDE])
        self.gaps = 0

    def open(self, name: str, event: Event) -> Frame | None:
        """Open a kept element, closing elements as a parser would; None if it is not allowed here."""
        stack = self.stack
        names = stack.names
        if names[-1] in TOUCHY or (stack.closes[-1] is not NOTHING and name in CLOSED_BY):
            while (index := stack.conflict(name)) is not None:
                self.close(self.frames[index])
        if (name in ROW_PARENT or names[-1] in TEXT_ONLY) and not stack.allowed(name):
            return None
        frame = Frame(name, len(self.events), self.gaps)
        self.frames.append(frame)
        if name in MODES:
            stack.push(name)
        else:
            names.append(name)
            stack.closes.append(stack.closes[-1])
        self.events.append(event)
        if self.with_gaps and len(event[1]) > 1:
            frame.solid = self._count(event[1])
        return frame

    def open_unless_bare(self) -> Frame:
        """Open an element that is only kept if it contains a gap."""
        frame = Frame(OUTSIDE, len(self.events), self.gaps)
        self.frames.append(frame)
        self.stack.push(OUTSIDE)
        return frame

    def _count(self, pieces: tuple[Piece, ...]) -> bool:
        gaps = 0
        for piece in pieces:
            kind = type(piece)
            gaps += kind is Gap or (kind is Picture and piece.gap is not None)  # type: ignore[union-attr]
        self.gaps += gaps
        return gaps > 0

    def text(self, text: str) -> None:
        """Text between tags; white space alone does not keep an element."""
        if text.strip(SPACE):
            if self.stack.names[-1] in TOUCHY:
                self._settle()
            top = self.frames[-1]
            top.content, top.solid = _MORE, True
        self.events.append(text)

    def space(self) -> None:
        """Add the word boundary of an unwrapped block."""
        self.events.append(" ")

    def atom(self, kind: int, pieces: tuple[Piece, ...], gap: bool = False) -> None:
        """A picture, a gap, a line break or a meta element."""
        if self.stack.names[-1] == "title" and not gap:
            return
        self._settle()
        top = self.frames[-1]
        top.content = _MORE
        top.solid = top.solid or kind != BREAK
        if self.with_gaps:
            self._count(pieces)
        self.events.append((kind, pieces))

    def _settle(self) -> None:
        while (index := self.stack.misplaced()) is not None:
            self.close(self.frames[index])

    def close(self, frame: Frame) -> None:
        """Close an element and all elements open in it."""
        while not frame.closed:
            self._finish(self.frames.pop())

    def _finish(self, frame: Frame) -> None:
        self.stack.names.pop()
        self.stack.closes.pop()
        frame.closed = True
        name = frame.name
        if name == OUTSIDE:
            if frame.gaps == self.gaps:
                del self.events[frame.start :]
                self.space()
                return
        elif not frame.solid:
            self._remove(frame)
            return
        elif name == "div" and frame.content == _ONE_DIV:
            self.events[frame.start] = None
        else:
            self.events.append(CLOSES[name])
        parent = self.frames[-1]
        parent.content = _ONE_DIV if parent.content == _EMPTY and name == "div" else _MORE
        parent.solid = parent.solid or frame.solid

    def _remove(self, frame: Frame) -> None:
        """Remove an element without content, but keep its white space between words."""
        left = "".join([event for event in self.events[frame.start :] if type(event) is str])
        del self.events[frame.start :]
        if "pre" not in self.stack.names:
            left = " " if left or frame.name not in INLINE else ""
        if left:
            self.events.append(left)

    def finish(self) -> list[Event | str]:
        """Every event, with all elements closed."""
        while len(self.frames) > 1:
            self._finish(self.frames.pop())
        return [event for event in self.events if event is not None]
