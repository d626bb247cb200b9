"""Left-to-right language modelling of unmasked pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Generator

from cm3kit.objectives.contract import Objective, ObjectiveSettings, TokenizerParts, Use
from cm3kit.objectives.units import cuts, too_small, window
from cm3kit.registry import objective
from cm3kit.types import Example, Span
from cm3kit_tokenizers.vocab import Vocab


class NextTokenSettings(ObjectiveSettings):
    """No settings."""

    name: str = "next-token"


@objective("next-token")
@dataclass(frozen=True)
class NextToken:
    """Predicts every id of the unmasked page.

    Args:
        continues: for each text id, whether it starts inside a UTF-8 character; no slice starts or
            stops before such an id.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = NextTokenSettings
    copies: ClassVar[int] = 1
    masks: ClassVar[bool] = False

    vocab: Vocab
    continues: Sequence[bool] | None = None

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """See `Objective`."""
        return cls(parts.vocab, parts.continues)

    def uses(self, window: int) -> tuple[Use, ...]:
        """Continuation from left to right."""
        return (Use(layout="continue", window=window, objective={"name": "next-token"}),)

    def validation(self) -> Mapping[str, Objective]:
        """The unmasked page."""
        return {"": self}

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """An `example` of each document."""
        return [self.make_example(ids, rng, budget) for ids in documents]

    def make_example(self, ids: Sequence[int], rng: Generator, budget: int) -> Example:
        """`<eod> ids <eod>`, or a slice without cut pictures, with `<eod>` only at an end of the document.

        Raises:
            ConfigError: `budget` is under 3, or the only picture of a document does not fit into it.
        """
        part: Span | None = Span(0, len(ids))
        if len(ids) > budget - 2:
            where = float(torch.rand((), generator=rng, dtype=torch.float64))
            places = cuts(ids, self.vocab, self.continues)
            part = window(places, budget - 2, where) if budget > 2 else None
        if part is None:
            raise too_small(budget)
        opening = [self.vocab.eod] if part.start == 0 else []
        closing = [self.vocab.eod] if part.stop == len(ids) else []
        out = [*opening, *ids[part.start : part.stop], *closing]
        return Example(out, [0.0, *[1.0] * (len(out) - 1)])
