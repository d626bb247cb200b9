"""The sets of states that the slots of a stretch may leave an automaton in.

Sets are found when they first come up and kept, as in the lazy subset construction of regular-expression
engines (Thompson, CACM 11(6), 1968), so that a step from a known set costs a look-up.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cm3kit.decoders.grammar.nfa import Automaton

ANY = -1
"""The class of a slot that is not written yet."""
HELD = 1 << 25
"""Bytes that one automaton's sets may take before they are forgotten."""

Edges = tuple[NDArray[np.int64], NDArray[np.int64]]


class StateSet:
    """A set of states, with where slots lead from it and to it as far as that was asked."""

    __slots__ = ("after", "before", "masks", "states_S")

    def __init__(self, states_S: NDArray[np.bool_]) -> None:
        self.states_S = states_S
        self.after: dict[int, StateSet] = {}
        self.before: dict[int, StateSet] = {}
        self.masks: dict[StateSet, Tensor] = {}


class Subsets:
    """Steps between sets of states.

    Args:
        automaton: what may follow what.
        held: about how many bytes to keep; what is forgotten is found again when it is asked for.
    """

    def __init__(self, automaton: Automaton, held: int = HELD) -> None:
        self.automaton, self._limit, self._held = automaton, held, 0
        self._sets: dict[bytes, StateSet] = {}
        self._masks: dict[bytes, Tensor] = {}
        self._edges: list[Edges] = [automaton.edges_of(number) for number in range(automaton.classes)]
        self._edges.append(_without_classes(automaton))
        self.start = self._intern(np.arange(len(automaton.final_S)) == 0)
        self.final = self._intern(automaton.final_S)

    def after(self, states: StateSet, number: int) -> StateSet:
        """States that a slot of a class, or of `ANY`, leads to from these."""
        found = states.after.get(number)
        if found is None:
            source_E, target_E = self._edges[number]
            found = self._step(states, source_E, target_E)
            states.after[number] = found
        return found

    def before(self, states: StateSet, number: int) -> StateSet:
        """States from which a slot of a class, or of `ANY`, leads to these."""
        found = states.before.get(number)
        if found is None:
            source_E, target_E = self._edges[number]
            found = self._step(states, target_E, source_E)
            states.before[number] = found
        return found

    def allowed(self, left: StateSet, right: StateSet) -> Tensor:
        """Ids that lead from a state on the left to one on the right, bool (V,): do not write to it."""
        found = left.masks.get(right)
        if found is None:
            found = self._mask(left, right)
            left.masks[right] = found
        return found

    def shortest(self) -> int | None:
        """Slots of the shortest run; None if there is no run at all."""
        states, slots = self.start, 0
        while not meet(states, self.final):
            if not states.states_S.any():
                return None
            states, slots = self.after(states, ANY), slots + 1
        return slots

    def _step(self, states: StateSet, from_E: NDArray[np.int64], to_E: NDArray[np.int64]) -> StateSet:
        reached_S = np.zeros_like(states.states_S)
        reached_S[to_E[states.states_S[from_E]]] = True
        return self._intern(reached_S)

    def _intern(self, states_S: NDArray[np.bool_]) -> StateSet:
        key = states_S.tobytes()
        found = self._sets.get(key)
        self._hold(100 if found is not None else len(key) + 600)
        if found is None:
            found = self._sets[key] = StateSet(np.frombuffer(key, dtype=np.bool_))
        return found

    def _mask(self, left: StateSet, right: StateSet) -> Tensor:
        automaton = self.automaton
        on_C = np.zeros(automaton.classes, dtype=np.bool_)
        joined_E = left.states_S[automaton.source_E] & right.states_S[automaton.target_E]
        on_C[automaton.class_E[joined_E]] = True
        key = on_C.tobytes()
        found = self._masks.get(key)
        self._hold(100 if found is not None else len(automaton.class_V) + 600)
        if found is None:
            found = self._masks[key] = torch.from_numpy(on_C[automaton.class_V])
        return found

    def _hold(self, count: int) -> None:
        self._held += count
        if self._held <= self._limit:
            return
        # Sets that are in use remain valid, but lose their cached transitions.
        for states in self._sets.values():
            for memory in (states.after, states.before, states.masks):
                memory.clear()
        self._sets.clear()
        self._masks.clear()
        self._held = count


def meet(one: StateSet, other: StateSet) -> bool:
    """Whether two sets share a state."""
    return bool((one.states_S & other.states_S).any())


def _without_classes(automaton: Automaton) -> Edges:
    size = len(automaton.final_S)
    pair_E = np.unique(automaton.source_E * size + automaton.target_E)
    return pair_E // size, pair_E % size
