"""The grammar of a stretch as a finite automaton: what `Grammar` allows, nested up to a fixed depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.html_state import State

Place = tuple[tuple[str, ...], int]


@dataclass(frozen=True, slots=True)
class Edge:
    """Any id of a group leads from one place to another."""

    source: int
    group: int
    target: int


@dataclass(frozen=True, slots=True)
class _Move:
    """What a group of ids does: it closes elements, opens others, and leaves a form."""

    group: int
    closes: int
    opens: tuple[str, ...]
    form: int


class Search:
    """All places that a run can reach, by breadth-first search over the grammar's own moves.

    A place is a stack of elements and a form: a state without its stack. States of one form and one
    `State.key` move alike, so the grammar is asked once for each of them, however many stacks there are.
    Place 0 is the start.

    Args:
        grammar: what is well-formed.
        start: state of the grammar before the first slot.
        padded: whether the end id may end a run, and then repeats up to its last slot.
        depth: how many elements a run may have open that were not open at its start.
    """

    def __init__(self, grammar: Grammar, start: State, padded: bool, depth: int) -> None:
        self._grammar, self._start, self._depth = grammar, start.stack, depth
        self._moves: dict[object, list[_Move]] = {}
        self.groups: list[list[int]] = []
        self._group_numbers: dict[tuple[int, int], int] = {}
        self._forms: list[State] = []
        self._form_numbers: dict[State, int] = {}
        first = (start.stack, self._form(start))
        self._places: dict[Place, int] = {first: 0}
        self.edges: list[Edge] = []
        self.final: list[int] = []
        waiting = [first]
        for place in waiting:
            waiting += self._explore(place)
        if padded:
            self._pad(start.end)

    def __len__(self) -> int:
        """How many places there are; the one after the end counts where there is one."""
        return 1 + max([0, *self.final, *(edge.target for edge in self.edges)])

    def _explore(self, place: Place) -> list[Place]:
        (stack, form), source, new = place, self._places[place], []
        state = replace(self._forms[form], stack=stack)
        if self._grammar.closed(state):
            self.final.append(source)
        full = len(stack) - _shared(stack, self._start) >= self._depth
        alike = (form, self._grammar.key(state), full)
        if alike not in self._moves:
            self._moves[alike] = self._ask(state, full)
        for move in self._moves[alike]:
            there = ((*stack[: len(stack) - move.closes], *move.opens), move.form)
            if there not in self._places:
                self._places[there] = len(self._places)
                new.append(there)
            self.edges.append(Edge(source, move.group, self._places[there]))
        return new

    def _ask(self, state: State, full: bool) -> list[_Move]:
        moves, height = [], len(state.stack)
        for ids in self._grammar.moves(state):
            reached = self._grammar.advance(state, ids[0])
            # A picture in a gap is a gap of its own.
            draws = reached.tag == "img" and not state.tag
            closes, opens = max(0, height - len(reached.stack)), reached.stack[height:]
            if not draws and not (full and opens):
                moves.append(_Move(self._group(ids), closes, opens, self._form(reached)))
        return moves

    def _form(self, state: State) -> int:
        form = replace(state, stack=())
        if form not in self._form_numbers:
            self._form_numbers[form] = len(self._forms)
            self._forms.append(form)
        return self._form_numbers[form]

    def _group(self, ids: list[int]) -> int:
        key = (1, ids[0]) if len(ids) == 1 else (len(ids), id(ids))
        if key not in self._group_numbers:
            self._group_numbers[key] = len(self.groups)
            self.groups.append(ids)
        return self._group_numbers[key]

    def _pad(self, end: int) -> None:
        group, after = self._group([end]), len(self._places)
        self.edges += [Edge(place, group, after) for place in (*self.final, after)]
        self.final.append(after)


@dataclass(frozen=True, slots=True)
class Automaton:
    """States 0 (the start) to S - 1, from each of which a final one can be reached, and E edges.

    Attributes:
        class_V: class of each id; ids of one class lead from any state to the same one. Ids that may stand
            nowhere are of the last class.
        class_E, source_E, target_E: the edges, sorted by class.
        final_S: where a run may end.
    """

    class_V: NDArray[np.int64]
    class_E: NDArray[np.int64]
    source_E: NDArray[np.int64]
    target_E: NDArray[np.int64]
    final_S: NDArray[np.bool_]

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.class_V.max()) + 1

    def edges_of(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sources and targets of one class."""
        start, stop = np.searchsorted(self.class_E, (number, number + 1))
        return self.source_E[start:stop], self.target_E[start:stop]


def build(grammar: Grammar, start: State, padded: bool, depth: int) -> Automaton:
    """The automaton of a stretch; the arguments are those of `Search`."""
    search = Search(grammar, start, padded, depth)
    class_V, classes = _classes(search.groups, len(grammar))
    each = sorted((c, e.source, e.target) for e in search.edges for c in classes[e.group])
    class_E, source_E, target_E = np.array(each, dtype=np.int64).reshape(-1, 3).T.copy()
    alive_S = np.zeros(len(search), dtype=np.bool_)
    alive_S[search.final] = True
    count = 0
    while count != (count := int(alive_S.sum())):
        alive_S[source_E[alive_S[target_E]]] = True
    alive_S[0] = True
    on_E = alive_S[source_E] & alive_S[target_E]
    number_S = alive_S.cumsum() - 1
    final_S = np.isin(np.flatnonzero(alive_S), search.final)
    return Automaton(class_V, class_E[on_E], number_S[source_E[on_E]], number_S[target_E[on_E]], final_S)


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many elements two stacks share from the outside in."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def _classes(groups: Sequence[list[int]], size: int) -> tuple[NDArray[np.int64], list[list[int]]]:
    """The coarsest classes of which every group is a union: class of each id, and classes of each group."""
    label_V = np.zeros(size, dtype=np.int64)
    # Those of one id come last and take a new label, as most groups are such.
    for ids in sorted(groups, key=len, reverse=True):
        above = int(label_V.max()) + 1
        label_V[ids] = above + (label_V[ids] if len(ids) > 1 else 0)
        if len(ids) > 1:
            label_V = np.unique(np.append(label_V, 0), return_inverse=True)[1][:-1]
    kinds = np.unique(label_V[label_V > 0])
    class_V = np.where(label_V > 0, np.searchsorted(kinds, label_V), len(kinds))
    return class_V, [np.unique(class_V[ids]).tolist() for ids in groups]
