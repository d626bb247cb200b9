"""The grammar of pages as a table; its elements are a stack beside, so that states are few however deep they lie."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from cm3kit.decoders.grammar.elements import CONTENT
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.html_state import MAX_DEPTH, Mode, State
from cm3kit.decoders.grammar.tables import (
    CLOSES,
    CONTENT_AGAIN,
    DEEPER,
    LINKS,
    NEVER,
    NOWHERE,
    Start,
    Table,
)

ELEMENTS = ("", *sorted(CONTENT))
NUMBER = {name: number for number, name in enumerate(ELEMENTS)}

Local = tuple[object, ...]
_KNOWN: WeakKeyDictionary[Grammar, HtmlTable] = WeakKeyDictionary()


class HtmlTable:
    """A grammar's table, and the places of its states in it.

    A state stands for all that are alike but for the elements below the top of their stack; what follows is asked of
    the grammar itself, once for each.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._places: dict[Local, int] = {}
        self._states: list[State] = []
        for whole in (False, True):
            for name in ELEMENTS:
                stack = ("div", name) if name else ()
                self._place(State(Mode.CONTENT, grammar.vocab.eoss, whole=whole, stack=stack, written=True))
        for mode in (Mode.TEXT, Mode.CODES):
            self._place(State(mode, grammar.vocab.eoss, written=True))
        self.table = self._table()

    @staticmethod
    def of(grammar: Grammar) -> HtmlTable:
        """The table of a grammar, which is made once."""
        if grammar not in _KNOWN:
            _KNOWN[grammar] = HtmlTable(grammar)
        return _KNOWN[grammar]

    def start(self, state: State) -> Start | None:
        """Where a run in this state stands; None where its page is open in a way that no model may write."""
        place = self._places.get(_local(state))
        if place is None or len(state.stack) > MAX_DEPTH or state.stack.count("a") > 1:
            return None
        around = NUMBER[state.outer[-1]] if state.outer else 0
        stack = [NUMBER[name] for name in state.stack]
        linked = "a" in (*state.outer, *state.stack)
        first = state.whole * len(ELEMENTS)
        return Start(self.table, place, state.exact, state.written, first, stack, around, linked)

    def _place(self, state: State) -> int:
        local = _local(state)
        if local not in self._places:
            self._places[local] = len(self._states)
            self._states.append(self._grammar.settled(state))
        return self._places[local]

    def _table(self) -> Table:
        rows: list[list[tuple[list[int], int, int, int, int]]] = []
        # States are found on the way.
        for state in self._states:
            rows.append([(ids, *self._cell(state, ids[0])) for ids in self._grammar.moves(state)])
        class_V, classes = _classes(len(self._grammar), (each[0] for row in rows for each in row))
        cells_SC4 = np.tile(np.array([NOWHERE, 0, NEVER, 0]), (len(rows), classes, 1))
        # Groups are shared lists, some of them long.
        groups = {id(ids): ids for row in rows for ids, *_ in row}
        columns_of = {key: np.unique(class_V[ids]) for key, ids in groups.items()}
        for number, row in enumerate(rows):
            for ids, *cell in row:
                cells_SC4[number, columns_of[id(ids)]] = cell
        after_SC, push_SC, need_SC, bar_SC = (torch.from_numpy(cells_SC4[..., at]) for at in range(4))
        final = [
            each.mode in (Mode.CONTENT, Mode.TEXT, Mode.CODES) and not each.utf8 for each in self._states
        ]
        final_S, codes_S = torch.tensor(final), torch.tensor([each.image for each in self._states])
        return Table(
            torch.from_numpy(class_V), after_SC, push_SC, need_SC, bar_SC, final_S, torch.zeros_like(final_S),
            codes_S, NUMBER["a"],
        )  # fmt: skip

    def _cell(self, state: State, id: int) -> tuple[int, int, int, int]:
        """State after an id, what it pushes, what it needs and what bars it."""
        after = self._grammar.advance(state, id)
        need, deeper = after.cost - len(state.stack), len(after.stack) - len(state.stack)
        push = NUMBER[after.stack[-1]] if deeper > 0 else deeper
        markup = id in self._grammar.vocab.markup
        piece = self._grammar.vocab.piece(id) if markup else ""
        link = state.mode is Mode.CONTENT and piece == "<a"
        # Behind the tag of a link the stack grows, but whether it may was asked before.
        bar = (
            DEEPER * (link or (deeper > 0 and state.mode is Mode.CONTENT))
            + CLOSES * (deeper < 0)
            + LINKS * link
        )
        again = markup and after.mode is Mode.CONTENT
        return CONTENT_AGAIN if again else self._place(after), push, need, bar


def _local(state: State) -> Local:
    if state.mode is Mode.CONTENT:
        around = (*state.outer, *state.stack)
        return Mode.CONTENT, state.utf8, state.whole, around[-1] if around else ""
    return state.mode, state.utf8, state.tag, state.last, state.left


def _classes(size: int, groups: Iterable[list[int]]) -> tuple[NDArray[np.int64], int]:
    """Class of each id, where those of one class are in the same groups, and how many there are."""
    # Groups that are shared lists come up again and again.
    distinct = list({tuple(each) if len(each) == 1 else id(each): each for each in groups}.values())
    in_GV = np.zeros((len(distinct), size), dtype=np.bool_)
    for row_V, ids in zip(in_GV, distinct, strict=True):
        row_V[ids] = True
    some_V = in_GV.any(0)
    _, number_K = np.unique(np.packbits(in_GV[:, some_V], axis=0), axis=1, return_inverse=True)
    count = int(number_K.max(initial=-1)) + 1
    class_V = np.full(size, count, dtype=np.int64)
    class_V[some_V] = number_K.reshape(-1)
    return class_V, count
