"""What may stand at the masked positions of a canvas: for each span what its place allows, or its constraint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.html_state import State
from cm3kit.decoders.grammar.language import Slots
from cm3kit.decoders.grammar.languages import refuse_unfit
from cm3kit.decoders.grammar.lazy_dfa import Subsets
from cm3kit.decoders.grammar.nfa import build
from cm3kit.decoders.grammar.trellis import Trellis
from cm3kit.types import Canvas, MaskSpan
from cm3kit_tokenizers.errors import ConfigError

DEPTH = 3
KEPT = 32
"""Automata that are kept for one grammar; those that were used last."""
_SUBSETS: WeakKeyDictionary[Grammar, dict[tuple[Any, ...], Subsets]] = WeakKeyDictionary()


class CanvasConstraint:
    """The `Constraint` of a canvas in this project's own vocabulary: one trellis for each span.

    Args:
        canvas: the sequence; its known ids are fixed.
        grammar: what is well-formed.
        depth: how many elements a gap may open inside one another.

    Raises:
        ConfigError: a span cannot hold any allowed answer (`bad_value`).
    """

    def __init__(self, canvas: Canvas, grammar: Grammar, depth: int = DEPTH) -> None:
        self._grammar, self._size = grammar, len(grammar)
        self._slots: dict[int, tuple[Slots, int]] = {}
        ranges = canvas.flatten(grammar.vocab.mask).ranges
        for span, where, before in zip(canvas.spans, ranges, _contexts(canvas, grammar), strict=True):
            slots = self._written(span, len(where), before, depth)
            self._slots |= {slot: (slots, slot - where.start) for slot in where}

    def _written(self, span: MaskSpan, length: int, before: State, depth: int) -> Slots:
        if span.constraint is not None:
            language = self._grammar.language(span)
            refuse_unfit(language, span, before)
            return language.slots(length, span.exact)
        subsets = _subsets(self._grammar, span, before, depth)
        trellis = Trellis(subsets, length)
        if not trellis.possible:
            raise ConfigError(_too_short(span, before, subsets.shortest()), code="bad_value")
        return trellis

    def complete(self, span: MaskSpan, ids: Sequence[int]) -> bool:
        """Whether an answer that fills all of its span is whole, and no longer one begins like it."""
        if span.constraint is None:
            return False
        language = self._grammar.language(span)
        return language.holds(ids) and not language.goes_on(ids)

    def allowed(self, slots: Sequence[int]) -> Tensor:
        """Ids that may come into each of these slots, if it alone is written now: bool (M, V)."""
        masks = self.masks(slots)
        return torch.stack(masks) if masks else torch.empty(0, self._size, dtype=torch.bool)

    def masks(self, slots: Sequence[int]) -> list[Tensor]:
        """The same mask by mask, (V,): do not write to them."""
        return [trellis.allowed(slot) for trellis, slot in map(self._slots.__getitem__, slots)]

    def commit(self, slot: int, id: int) -> None:
        """Record that an id was written or replaced; ValueError if it is not allowed there."""
        trellis, place = self._slots[slot]
        trellis.commit(place, id)

    def release(self, slot: int) -> None:
        """Record that a slot is masked again."""
        trellis, place = self._slots[slot]
        trellis.release(place)


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
