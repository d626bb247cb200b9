"""Which ids each slot of a span may take, so that the span stays well-formed in any order of writing.

Id v may come into slot i iff it leads from a state that the slots before i can leave the automaton in to one
from which the slots after i can reach the end: the forward and backward pass over a trellis (Bahl et al.,
IEEE Trans. Inf. Theory 20(2), 1974), with "possible" in the place of probabilities.
"""

from __future__ import annotations

from torch import Tensor

from cm3kit.decoders.grammar.lazy_dfa import ANY, Subsets, meet


class Trellis:
    """The slots of one span.

    Whatever was committed, some filling of the rest is allowed.

    Args:
        subsets: what may follow what, shared by all spans of one kind and place.
        length: how many slots there are, from 0 on.
    """

    def __init__(self, subsets: Subsets, length: int) -> None:
        self._subsets, self._length = subsets, length
        self._classes = [ANY] * length
        # left[i] holds the states before slot i, right[i] those after slot i - 1 that reach the end.
        self._left, self._right = [subsets.start], [subsets.final]
        for _ in range(length):
            self._left.append(subsets.after(self._left[-1], ANY))
            self._right.append(subsets.before(self._right[-1], ANY))
        self._right.reverse()

    @property
    def possible(self) -> bool:
        """Whether the span can be filled at all."""
        return meet(self._left[0], self._right[0])

    def allowed(self, slot: int) -> Tensor:
        """Ids that a slot may take, written or not; bool (V,), not to be written to."""
        return self._subsets.allowed(self._left[slot], self._right[slot + 1])

    def commit(self, slot: int, id: int) -> None:
        """Write an id; ValueError if it is not allowed there."""
        if not self.allowed(slot)[id]:
            raise ValueError(f"id {id} is not allowed in slot {slot} of its span")
        self._set(slot, int(self._subsets.automaton.class_V[id]))

    def release(self, slot: int) -> None:
        """Open a slot again."""
        self._set(slot, ANY)

    def _set(self, slot: int, number: int) -> None:
        """Note the class of a slot, and go on in both directions for as long as something changes."""
        self._classes[slot] = number
        for place in range(slot, self._length):
            states = self._subsets.after(self._left[place], self._classes[place])
            if states is self._left[place + 1]:
                break
            self._left[place + 1] = states
        for place in range(slot, -1, -1):
            states = self._subsets.before(self._right[place + 1], self._classes[place])
            if states is self._right[place]:
                break
            self._right[place] = states
