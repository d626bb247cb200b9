"""Thin a page out to CM3's minimal HTML: empty elements go, nested divs fold (arXiv:2201.07520, sec. 3.1)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cm3kit_tokenizers.document import Gap, Node, Picture
from cm3kit_tokenizers.html.nesting import INLINE, OUTSIDE, Stack

SPACES = re.compile(r"[ \t\n\f\r]+")


@dataclass(frozen=True, slots=True)
class Event:
    """A start tag with its attributes, an end tag, text, or anything else that stands in the flow."""

    kind: Literal["open", "close", "text", "atom"]
    name: str
    nodes: tuple[Node, ...] = ()
    text: str = ""


@dataclass(slots=True)
class Frame:
    """An element that is still open; `start` is the index of its start tag's event."""

    name: str
    start: int
    gaps: int
    items: int = 0
    only_div: bool = False
    solid: bool = False
    closed: bool = False


class Outline:
    """Collects events of a tree walk; whatever it returns is balanced and parses back to itself."""

    def __init__(self) -> None:
        self.events: list[Event | None] = []
        self.frames: list[Frame] = [Frame(OUTSIDE, 0, 0)]
        self.stack = Stack([OUTSIDE])
        self.gaps = 0

    def open(self, name: str, nodes: tuple[Node, ...]) -> Frame | None:
        """Open a kept element, closing what a parser would close; None where it cannot stand."""
        self._settle(lambda: self.stack.conflict(name))
        if not self.stack.allowed(name):
            return None
        frame = self._push(name)
        self.events.append(Event("open", name, nodes))
        frame.solid = self._count(nodes)
        return frame

    def open_unless_bare(self) -> Frame:
        """Open an element that leaves no trace unless a gap stands in it."""
        return self._push(OUTSIDE)

    def _push(self, name: str) -> Frame:
        frame = Frame(name, len(self.events), self.gaps)
        self.frames.append(frame)
        self.stack.push(name)
        return frame

    def _count(self, nodes: tuple[Node, ...]) -> bool:
        gaps = sum(
            isinstance(node, Gap) or (isinstance(node, Picture) and node.gap is not None) for node in nodes
        )
        self.gaps += gaps
        return gaps > 0

    def _settle(self, find: Callable[[], int | None]) -> None:
        while (index := find()) is not None:
            self.close(self.frames[index])

    def text(self, text: str) -> None:
        """Text between tags; white space alone does not keep an element."""
        if SPACES.sub("", text):
            self._item()
        self.events.append(Event("text", "", text=text))

    def space(self) -> None:
        """The boundary that an unwrapped block leaves between two words."""
        self.events.append(Event("text", "", text=" "))

    def atom(self, name: str, nodes: tuple[Node, ...], solid: bool = True) -> None:
        """A picture, a gap, a line break or a meta element."""
        if self.stack.names[-1] == "title" and name != "gap":
            return
        self._item(solid)
        self._count(nodes)
        self.events.append(Event("atom", name, nodes))

    def _item(self, solid: bool = True) -> None:
        self._settle(self.stack.misplaced)
        top = self.frames[-1]
        top.items += 1
        top.only_div = False
        top.solid = top.solid or solid

    def close(self, frame: Frame) -> None:
        """End an element and whatever is still open in it."""
        while not frame.closed:
            self._finish(self.frames.pop())

    def _finish(self, frame: Frame) -> None:
        self.stack.pop()
        frame.closed = True
        if frame.name == OUTSIDE:
            if frame.gaps == self.gaps:
                del self.events[frame.start :]
                self.space()
                return
        elif not frame.solid:
            self._remove(frame)
            return
        elif frame.name == "div" and frame.items == 1 and frame.only_div:
            self.events[frame.start] = None
        else:
            self.events.append(Event("close", frame.name))
        parent = self.frames[-1]
        parent.items += 1
        parent.only_div = frame.name == "div" and parent.items == 1
        parent.solid = parent.solid or frame.solid

    def _remove(self, frame: Frame) -> None:
        """Drop an element without content, but not the white space that it put between two words."""
        left = "".join(event.text for event in self.events[frame.start :] if event and event.kind == "text")
        del self.events[frame.start :]
        if "pre" not in self.stack.names:
            left = " " if left or frame.name not in INLINE else ""
        if left:
            self.events.append(Event("text", "", text=left))

    def finish(self) -> list[Event]:
        """Every event, with all elements closed."""
        while len(self.frames) > 1:
            self._finish(self.frames.pop())
        return [event for event in self.events if event]
