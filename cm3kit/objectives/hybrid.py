"""One model for two objectives: each page gets an example of one of them (GPT-BERT, arXiv:2410.24159, sec. 3).

With the second objective's `shift` on, both predict an id at the position before it, so that they share one head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Generator

from cm3kit.objectives.causal_mask import CausalMask, CausalMaskSettings
from cm3kit.objectives.contract import Objective, ObjectiveSettings, TokenizerParts, Use
from cm3kit.objectives.masked_diffusion import DiffusionSettings, MaskedDiffusion
from cm3kit.registry import objective
from cm3kit.types import Example
from cm3kit_tokenizers.errors import ConfigError


class HybridSettings(CausalMaskSettings):
    """Settings of causal masking and masked diffusion, and the `share` of causally masked pages."""

    name: str = "hybrid"
    diffusion: DiffusionSettings = DiffusionSettings()
    share: float = Field(0.5, ge=0, le=1)


@objective("hybrid")
@dataclass(frozen=True)
class Hybrid:
    """`first` for a share of the pages, `second` for the others.

    Every batch has this share up to rounding to whole pages; it is exact in expectation.

    Raises:
        ConfigError: `share` is outside [0, 1].
    """

    Settings: ClassVar[type[ObjectiveSettings]] = HybridSettings

    first: Objective
    second: Objective
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share = {self.share}: give a value from 0 to 1.", code="bad_config")

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """See `Objective`."""
        return cls(CausalMask.build(settings, parts), MaskedDiffusion.build(settings, parts), settings.share)

    @property
    def copies(self) -> int:
        """The larger of both."""
        return max(self.first.copies, self.second.copies)

    @property
    def masks(self) -> bool:
        """Whether one of them uses masks."""
        return self.first.masks or self.second.masks

    def uses(self, window: int) -> tuple[Use, ...]:
        """Uses of both."""
        return (*self.first.uses(window), *self.second.uses(window))

    def validation(self) -> Mapping[str, Objective]:
        """Validation of both."""
        return {**self.first.validation(), **self.second.validation()}

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """Examples of both kinds, in random order."""
        count = len(documents)
        # Random rounding keeps the share exact in expectation.
        odd = float(torch.rand((), generator=rng, dtype=torch.float64))
        firsts = min(count, int(self.share * count + odd))
        order = torch.randperm(count, generator=rng).tolist()
        mine = self.first.make_examples([documents[index] for index in order[:firsts]], rng, budget)
        theirs = self.second.make_examples([documents[index] for index in order[firsts:]], rng, budget)
        both = [*mine, *theirs]
        return [both[index] for index in torch.randperm(len(both), generator=rng).tolist()]
