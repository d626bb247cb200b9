"""What may stand in each slot of a canvas, so that the whole stays well-formed in whatever order it is written.

Id v may come into slot i iff it leads from a state that the slots before i can leave the automaton in to one
from which the slots after i can reach the end: the forward and backward pass over a trellis (Bahl et al.,
IEEE Trans. Inf. Theory 20(2), 1974), with "possible" in the place of probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.html_state import State
from cm3kit.decoders.grammar.lazy_dfa import ANY, Subsets, meet
from cm3kit.decoders.grammar.nfa import build
from cm3kit.types import Canvas, MaskSpan
from cm3kit_tokenizers.errors import ConfigError

DEPTH = 3
KEPT = 32
"""Automata that are kept for one grammar; those that were used last."""
_SUBSETS: WeakKeyDictionary[Grammar, dict[tuple[Any, ...], Subsets]] = WeakKeyDictionary()


class Lattice:
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
        """Ids that may come into a slot, or into the place of what stands there; bool (V,), not to be written to."""
        return self._subsets.allowed(self._left[slot], self._right[slot + 1])

    def commit(self, slot: int, id: int) -> None:
        """Write an id; ValueError if it may not stand there."""
        if not self.allowed(slot)[id]:
            raise ValueError(f"id {id} may not stand in slot {slot} of its span")
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


class CanvasConstraint:
    """The `Constraint` of a canvas in this project's own vocabulary: one lattice for each span.

    Args:
        canvas: the sequence; its known ids are fixed.
        grammar: what is well-formed.
        depth: how many elements a gap may open inside one another.

    Raises:
        ConfigError: a span cannot hold any allowed answer (`bad_value`).
    """

    def __init__(self, canvas: Canvas, grammar: Grammar, depth: int = DEPTH) -> None:
        self._size = len(grammar)
        self._slots: dict[int, tuple[Lattice, int]] = {}
        ranges = canvas.flatten(grammar.vocab.mask).ranges
        for span, where, before in zip(canvas.spans, ranges, _contexts(canvas, grammar), strict=True):
            subsets = _subsets(grammar, span, before, depth)
            lattice = Lattice(subsets, len(where))
            if not lattice.possible:
                raise ConfigError(_too_short(span, before, subsets.shortest()), code="bad_value")
            self._slots |= {slot: (lattice, slot - where.start) for slot in where}

    def allowed(self, slots: Sequence[int]) -> Tensor:
        """Ids that may come into each of these slots, if it alone is written now: bool (M, V)."""
        masks = [lattice.allowed(slot) for lattice, slot in map(self._slots.__getitem__, slots)]
        return torch.stack(masks) if masks else torch.empty(0, self._size, dtype=torch.bool)

    def commit(self, slot: int, id: int) -> None:
        """Take note that an id was written, over another one or not; ValueError if it is not allowed there."""
        lattice, place = self._slots[slot]
        lattice.commit(place, id)

    def release(self, slot: int) -> None:
        """Take note that a slot is open again."""
        lattice, place = self._slots[slot]
        lattice.release(place)


def _contexts(canvas: Canvas, grammar: Grammar) -> Iterator[State]:
    """For each span where the page stands before its gap; a gap leaves the page where it was."""
    state, at = grammar.after(()), 0
    for span in canvas.spans:
        if span.context < at:
            state, at = grammar.after(()), 0
        state, at = grammar.after(canvas.ids[at : span.context], state), span.context
        yield state


def _subsets(grammar: Grammar, span: MaskSpan, before: State, depth: int) -> Subsets:
    start, padded = grammar.begin(span.kind, span.exact, before), not span.exact
    known = _SUBSETS.setdefault(grammar, {})
    key = (start.key, start.stack, start.left, start.tag, start.last, padded, depth)
    found = known.pop(key, None) or Subsets(build(grammar, start, padded, depth))
    known[key] = found
    if len(known) > KEPT:
        del known[next(iter(known))]
    return found


def _too_short(span: MaskSpan, before: State, shortest: int | None) -> str:
    inside = f" inside <{before.stack[-1]}>" if span.kind == "content" and before.stack else ""
    what = f"A gap of kind {span.kind}{inside} cannot be filled with {span.max_tokens} ids"
    if shortest is None:
        return f"{what}, nor with any other number; choose another place."
    return f"{what}; its shortest answer takes {shortest}."
