"""One model for two objectives: each page is asked in one of two ways (GPT-BERT, arXiv:2410.24159, sec. 3).

With the second objective's `shift` on, both read an id off the place before it, so that one head serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from cm3kit.registry import objective
from cm3kit.types import Exercise, Objective
from cm3kit_tokenizers.errors import ConfigError


@objective("hybrid")
@dataclass(frozen=True)
class Hybrid:
    """`first` for a share of the pages, `second` for the others.

    The share is kept in every batch as nearly as whole pages allow, and exactly in the long run.

    Raises:
        ConfigError: `share` is outside [0, 1].
    """

    first: Objective
    second: Objective
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share = {self.share}: it lies between 0 and 1.", code="bad_config")

    @property
    def causal(self) -> bool:
        """Whether both only look left."""
        return self.first.causal and self.second.causal

    def exercises(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Exercise]:
        """Exercises of both kinds, in random order."""
        count = len(documents)
        # Rounding by a coin keeps the share exact in the mean.
        odd = float(torch.rand((), generator=rng, dtype=torch.float64))
        firsts = min(count, int(self.share * count + odd))
        order = torch.randperm(count, generator=rng).tolist()
        mine = self.first.exercises([documents[index] for index in order[:firsts]], rng, budget)
        theirs = self.second.exercises([documents[index] for index in order[firsts:]], rng, budget)
        both = [*mine, *theirs]
        return [both[index] for index in torch.randperm(len(both), generator=rng).tolist()]
