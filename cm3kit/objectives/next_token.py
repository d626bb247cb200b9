"""Plain left-to-right language modelling: the page as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from cm3kit.objectives.units import cuts, too_small, window
from cm3kit.registry import objective
from cm3kit.types import Exercise, Span
from cm3kit_tokenizers.vocab import Vocab


@objective("next-token")
@dataclass(frozen=True)
class NextToken:
    """Hides nothing.

    Args:
        continues: for each text id, whether it starts inside a UTF-8 character; no slice starts or
            stops before such an id.
        image_length: codes of a whole picture.
    """

    vocab: Vocab
    continues: Sequence[bool] | None = None
    image_length: int = 0

    @property
    def causal(self) -> bool:
        """The backbone only looks left."""
        return True

    def exercises(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Exercise]:
        """An `exercise` of each document."""
        return [self.exercise(ids, rng, budget) for ids in documents]

    def exercise(self, ids: Sequence[int], rng: Generator, budget: int) -> Exercise:
        """`<eod> ids <eod>`, or a slice that cuts no picture and has `<eod>` only at a true end.

        Raises:
            ConfigError: `budget` is under 3, or a picture that is all there is does not fit into it.
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
        return Exercise(out, [0.0, *[1.0] * (len(out) - 1)])
