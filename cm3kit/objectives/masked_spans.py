"""Causal masking with loss weights only on masked spans and their ends, for validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Generator

from cm3kit.objectives.contract import Objective, ObjectiveSettings, TokenizerParts, Use
from cm3kit.types import Example
from cm3kit_tokenizers.vocab import Vocab


@dataclass(frozen=True)
class MaskedSpans:
    """The examples of `inner` with other loss weights."""

    Settings: ClassVar[type[ObjectiveSettings]] = ObjectiveSettings
    copies: ClassVar[int] = 1
    masks: ClassVar[bool] = False

    inner: Objective
    vocab: Vocab

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """Not available: only causal masking creates it."""
        raise NotImplementedError

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """Weight 1 for ids of masked spans and their ends, 0 for all others."""
        return [self._only_spans(each) for each in self.inner.make_examples(documents, rng, budget)]

    def uses(self, window: int) -> tuple[Use, ...]:
        """Uses of causal masking."""
        return self.inner.uses(window)

    def validation(self) -> Mapping[str, Objective]:
        """Itself."""
        return {"fill_": self}

    def _only_spans(self, example: Example) -> Example:
        ids, sentinels = example.ids, self.vocab.sentinel_range
        seen: set[int] = set()
        start = len(ids)
        for place, id in enumerate(ids):
            if id in seen:
                start = place
                break
            if id in sentinels:
                seen.add(id)
        weights = [float(place >= start and id not in sentinels) for place, id in enumerate(ids)]
        return replace(example, weights=weights)
