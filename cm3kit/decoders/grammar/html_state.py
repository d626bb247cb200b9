"""Where a run of minimal HTML stands, and the pieces of markup that may follow there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from cm3kit.decoders.grammar.elements import CONTENT, TOP
from cm3kit_tokenizers.vocab import ATTRIBUTES

MAX_DEPTH = 48


class Mode(IntEnum):
    """Where in the markup the next id stands."""

    CONTENT = 0
    TAG = 1
    VALUE = 2
    SRC = 3
    TEXT = 4
    CODES = 5


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands.

    Attributes:
        end: id that ends the run, and `others` further ones.
        exact: whether the run has a fixed length, and so no end id.
        whole: whether the run goes on to the end of the page, and may hold what only a page has.
        stack: elements that the run itself must close.
        outer: elements around a gap.
        tag: element whose attributes are being written, `last` the index of its latest attribute.
        left: codes that the open picture still needs.
        utf8: state of the text automaton.
        written: whether the run holds anything; an empty one is no answer.
        cost: ids that are needed to close everything.
        key: states of one key allow the same ids at the same cost.
    """

    mode: Mode
    end: int
    exact: bool = False
    whole: bool = False
    stack: tuple[str, ...] = ()
    outer: tuple[str, ...] = ()
    tag: str = ""
    last: int = -1
    left: int = 0
    utf8: int = 0
    written: bool = False
    others: tuple[int, ...] = ()
    cost: int = field(default=0, compare=False)
    key: tuple[Any, ...] = field(default=(), compare=False)

    @property
    def image(self) -> bool:
        """Whether the next id is an image code."""
        return self.mode is Mode.CODES or (self.mode is Mode.SRC and self.left > 0)


def action(piece: str, image_length: int) -> Callable[[State], State]:
    """What writing a piece of markup does to a state."""
    name = piece.strip('</> ="')
    if piece.startswith("</"):
        return lambda state: _close(state, name)
    if piece == "<br>":
        return lambda state: state
    if piece.startswith("<") and piece.endswith(">"):
        return lambda state: replace(state, mode=Mode.CONTENT, stack=(*state.stack, name))
    if piece.startswith("<"):
        return lambda state: replace(state, mode=Mode.TAG, tag=name, last=-1, left=0)
    if piece.startswith(" "):
        return lambda state: _attribute(state, name, image_length)
    return _close_value if piece == '"' else _close_tag


def complete(state: State) -> bool:
    """Whether the tag may be closed as far as its attributes go."""
    return state.last >= 0 or state.tag == "a"


def _close(state: State, name: str) -> State:
    if name not in state.stack:
        return state
    depth = len(state.stack) - 1 - state.stack[::-1].index(name)
    return replace(state, mode=Mode.CONTENT, stack=state.stack[:depth], tag="")


def _attribute(state: State, name: str, image_length: int) -> State:
    if name not in ATTRIBUTES.get(state.tag, ()):
        return state
    picture = name == "src"
    return replace(
        state,
        mode=Mode.SRC if picture else Mode.VALUE,
        last=ATTRIBUTES[state.tag].index(name),
        left=image_length if picture else 0,
    )


def _close_value(state: State) -> State:
    return replace(state, mode=Mode.TAG, left=0) if state.mode in (Mode.VALUE, Mode.SRC) else state


def _close_tag(state: State) -> State:
    if not state.tag:
        return state
    stack = (*state.stack, "a") if state.tag == "a" else state.stack
    return replace(state, mode=Mode.CONTENT, stack=stack, tag="", last=-1, left=0)


def _content_pieces(state: State, image_length: int) -> Iterator[str]:
    around = (*state.outer, *state.stack)
    children = CONTENT[around[-1]] if around else TOP
    if not state.whole:
        children = children - {"title", "meta"}
    for name in sorted(children - {""}):
        if name == "a" and "a" in around:
            continue
        if name in ("img", "meta", "br"):
            yield "<br>" if name == "br" else f"<{name}"
        elif len(state.stack) < MAX_DEPTH:
            yield f"<{name}" if name == "a" else f"<{name}>"
    if state.stack:
        yield f"</{state.stack[-1]}>"


def _tag_pieces(state: State, image_length: int) -> Iterator[str]:
    for index, name in enumerate(ATTRIBUTES[state.tag]):
        first_title = state.tag == "img" and name == "title" and state.last < 0
        if index > state.last and not first_title and (name != "src" or image_length):
            yield f' {name}="'
    if complete(state):
        yield ">"


def _value_pieces(state: State, image_length: int) -> Iterator[str]:
    yield '"'


def _no_pieces(state: State, image_length: int) -> Iterator[str]:
    yield from ()


PIECES: dict[Mode, Callable[[State, int], Iterator[str]]] = {
    Mode.CONTENT: _content_pieces,
    Mode.TAG: _tag_pieces,
    Mode.VALUE: _value_pieces,
    Mode.SRC: _value_pieces,
    Mode.TEXT: _no_pieces,
    Mode.CODES: _no_pieces,
}
