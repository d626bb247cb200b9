"""An automaton over bytes as one over tokens, for both decoders (Willard and Louf, arXiv:2307.09702, sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cm3kit.decoders.grammar.language import Run, Slots
from cm3kit.decoders.grammar.lazy_dfa import Subsets
from cm3kit.decoders.grammar.nfa import Automaton
from cm3kit.decoders.grammar.rules import ByteDfa
from cm3kit.decoders.grammar.tables import MOST_CLASSES, MOST_STATES, NEVER, Table
from cm3kit.decoders.grammar.trellis import Trellis

BLOCK = 1 << 22
"""Pairs of state and token that are followed at once."""


class TokenDfa:
    """Implements `language.Language` for a regular set.

    Tokens that lead from every state to the same one are of one class.

    Args:
        dfa: over bytes.
        pieces: bytes of each token; None for those that may not be written.
        first: id of token 0. size: V.
        end: the id that ends an answer.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, dfa: ByteDfa, pieces: Sequence[bytes | None], first: int, size: int, end: int) -> None:
        self.first, self.size, self.end = first, size, end
        words = _Words(pieces)
        class_T, kinds = _classes(dfa, words)
        next_SC = _rows(dfa, words.only(kinds), 0, len(dfa.final_S))
        # A step into a state from which no answer can be completed is none.
        alive_S = np.asarray(dfa.final_S, dtype=np.bool_).copy()
        count = -1
        while count != (count := int(alive_S.sum())):
            alive_S |= np.asarray(((next_SC >= 0) & alive_S[next_SC]).any(1), dtype=np.bool_)
        next_SC = np.where((next_SC >= 0) & alive_S[next_SC], next_SC, -1)
        self.final_S, self.next_SC = np.asarray(dfa.final_S, dtype=np.bool_), next_SC
        self.class_V = np.full(size, len(kinds), dtype=np.int64)
        self.class_V[first : first + len(class_T)] = class_T
        self._within = [self.final_S]
        self._exactly = [self.final_S]
        self._masks: dict[tuple[int, int, bool], Tensor] = {}

    def ending(self, end: int) -> TokenDfa:
        """See `Language`."""
        other = copy(self)
        other.end, other._masks = end, {}
        vars(other).pop("_subsets", None)
        return other

    def shortest(self) -> int | None:
        """See `Language`."""
        return next((count for count in range(len(self.final_S) + 1) if self.within(count)[0]), None)

    def fits(self, most: int, exact: bool) -> bool:
        """See `Language`."""
        return bool((self.exactly(most) if exact else self.within(most))[0])

    def holds(self, ids: Sequence[int]) -> bool:
        """See `Language`."""
        state = self._state(ids)
        return state >= 0 and bool(self.final_S[state])

    def goes_on(self, ids: Sequence[int]) -> bool:
        """See `Language`."""
        state = self._state(ids)
        return state >= 0 and bool((self.next_SC[state] >= 0).any())

    def run(self, most: int, exact: bool) -> Run:
        """See `Language`."""
        return DfaRun(self, exact)

    def slots(self, length: int, exact: bool) -> Slots:
        """See `Language`."""
        return Trellis(self._subsets[exact], length)

    def after(self, state: int, id: int) -> int:
        """State after an id; -1 where it may not follow."""
        number = int(self.class_V[id])
        return int(self.next_SC[state, number]) if number < self.next_SC.shape[1] else -1

    def within(self, count: int) -> NDArray[np.bool_]:
        """States from which an answer can be completed with at most so many ids."""
        while len(self._within) <= count and (
            len(self._within) < 2 or (self._within[-1] != self._within[-2]).any()
        ):
            self._within.append(self._within[-1] | self._before(self._within[-1]))
        return self._within[min(count, len(self._within) - 1)]

    def exactly(self, count: int) -> NDArray[np.bool_]:
        """States from which an answer can be completed with exactly so many ids."""
        while len(self._exactly) <= count:
            self._exactly.append(self._before(self._exactly[-1]))
        return self._exactly[count]

    def mask(self, state: int, left: int, exact: bool) -> Tensor:
        """Ids that may follow a state if so many more may, or must, be written; the end too where it may."""
        key = (state, left if exact else min(left, len(self.final_S) + 1), exact)
        found = self._masks.get(key)
        if found is None:
            if len(self._masks) > 4096:
                self._masks.clear()
            on_C = np.zeros(self.next_SC.shape[1] + 1, dtype=np.bool_)
            if left > 0:
                good_S = self.exactly(left - 1) if exact else self.within(left - 1)
                row_C = self.next_SC[state]
                on_C[:-1] = (row_C >= 0) & good_S[row_C]
            mask_V = on_C[self.class_V]
            mask_V[self.end] = bool(self.final_S[state]) and not exact
            found = self._masks[key] = torch.from_numpy(mask_V)
        return found

    @cached_property
    def table(self) -> Table | None:
        """Answers of any length as a table; None where it is too large a one."""
        states, classes = self.next_SC.shape
        if states > MOST_STATES or classes > MOST_CLASSES:
            return None
        # From how many ids an answer can be completed; states from which none can are gone.
        self.within(states)
        least_S: NDArray[np.int64] = (~np.stack(self._within)).sum(0, dtype=np.int64)
        need_SC = np.where(self.next_SC >= 0, least_S[self.next_SC], NEVER)
        return Table.flat(
            torch.from_numpy(self.class_V), torch.from_numpy(self.next_SC.astype(np.int64)), torch.from_numpy(need_SC),
            torch.from_numpy(self.final_S.copy()), torch.from_numpy((self.next_SC < 0).all(1)),
        )  # fmt: skip

    def _before(self, states_S: NDArray[np.bool_]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.asarray(
            ((self.next_SC >= 0) & states_S[self.next_SC]).any(1), dtype=np.bool_
        )
        return found

    def _state(self, ids: Sequence[int]) -> int:
        state = 0
        for id in ids:
            state = self.after(state, id)
            if state < 0:
                break
        return state

    @cached_property
    def _subsets(self) -> tuple[Subsets, Subsets]:
        """Sets of states for answers that end by the end id, and for those of a fixed length."""
        return Subsets(self._automaton(padded=True)), Subsets(self._automaton(padded=False))

    def _automaton(self, padded: bool) -> Automaton:
        states, classes = self.next_SC.shape
        class_E, source_E = np.nonzero(self.next_SC.T >= 0)
        target_E = self.next_SC[source_E, class_E].astype(np.int64)
        class_V, final_S = self.class_V.copy(), self.final_S
        if padded:
            # The end is a class of its own, behind which only the end may follow.
            class_V[class_V == classes] += 1
            class_V[self.end] = classes
            ending = np.append(np.flatnonzero(self.final_S), states)
            class_E = np.append(class_E, np.full(len(ending), classes))
            source_E, target_E = (
                np.append(source_E, ending),
                np.append(target_E, np.full(len(ending), states)),
            )
            final_S = np.append(self.final_S, True)
        return Automaton(class_V, class_E, source_E, target_E, final_S)


class DfaRun:
    """Implements `language.Run`."""

    def __init__(self, language: TokenDfa, exact: bool) -> None:
        self._language, self._exact, self._state = language, exact, 0

    def allowed(self, left: int) -> Tensor:
        """See `Run`."""
        return self._language.mask(self._state, left, self._exact)

    def take(self, id: int) -> None:
        """See `Run`."""
        self._state = self._language.after(self._state, id)

    @property
    def more(self) -> bool:
        """See `Run`."""
        return bool((self._language.next_SC[self._state] >= 0).any())

    def table(self) -> Table | None:
        """See `Run`; an answer of a fixed length depends on more than whether it can be completed."""
        return None if self._exact or self._state else self._language.table


class _Words:
    """Bytes of tokens, the longest first, so that those that reach a place stand together."""

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self.count = len(pieces)
        self.order_T = np.array(
            sorted((t for t, piece in enumerate(pieces) if piece), key=lambda t: -len(pieces[t] or b"")),
            dtype=np.int64,
        )
        rows = [pieces[token] or b"" for token in self.order_T.tolist()]
        lengths_T = np.array([len(row) for row in rows], dtype=np.int64)
        # columns[i] are the bytes at place i of the tokens that have one.
        self.columns = [
            np.array([row[place] for row in rows[: int((lengths_T > place).sum())]], dtype=np.int64)
            for place in range(int(lengths_T.max(initial=0)))
        ]

    def only(self, places: NDArray[np.int64]) -> _Words:
        """Those at some places of the order, ascending."""
        found = object.__new__(_Words)
        found.count, found.order_T = len(places), np.arange(len(places))
        found.columns = [column[places[places < len(column)]] for column in self.columns]
        return found


def _classes(dfa: ByteDfa, words: _Words) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Class of each token, the last for those that may stand nowhere; and for each class the place of a token of it."""
    sums = np.zeros((2, len(words.order_T)), dtype=np.uint64)
    some_T = np.zeros(len(words.order_T), dtype=np.bool_)
    step = max(1, BLOCK // max(1, len(words.order_T)))
    for start in range(0, len(dfa.final_S), step):
        found_ST = _rows(dfa, words, start, min(start + step, len(dfa.final_S)))
        some_T |= (found_ST >= 0).any(0)
        # Columns that are alike have the same sums, and others by a chance of 2^-128.
        row_S1 = np.arange(start, start + len(found_ST), dtype=np.uint64)[:, None]
        pairs_ST = (row_S1 << np.uint64(32)) + (found_ST + 1).astype(np.uint64)
        for number, salt in enumerate((0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)):
            sums[number] += _mixed(pairs_ST ^ np.uint64(salt)).sum(0, dtype=np.uint64)
    keys = np.where(some_T, sums, 0)
    _, places, class_K = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    class_K = class_K.reshape(-1)
    used = np.unique(class_K[some_T])
    used = used[np.argsort(places[used])]
    number_of = np.full(len(places), len(used), dtype=np.int64)
    number_of[used] = np.arange(len(used))
    class_T = np.full(words.count, len(used), dtype=np.int64)
    class_T[words.order_T] = np.where(some_T, number_of[class_K], len(used))
    return class_T, places[used].astype(np.int64)


def _rows(dfa: ByteDfa, words: _Words, start: int, stop: int) -> NDArray[np.int32]:
    """The state after each token, from states `start:stop`; -1 where it may not follow."""
    # State S is the one of no return, which -1 finds.
    table_SB = np.concatenate([dfa.next_SB, np.full((1, dfa.next_SB.shape[1]), -1)]).astype(np.int32)
    out_ST = np.repeat(np.arange(start, stop, dtype=np.int32)[:, None], len(words.order_T), 1)
    for column_K in words.columns:
        out_ST[:, : len(column_K)] = table_SB[out_ST[:, : len(column_K)], column_K]
    return out_ST


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Numbers spread over 64 bits (splitmix64; Steele et al., OOPSLA 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
