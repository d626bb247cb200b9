"""One forward pass with all of the answer masked (diffu-GRPO of d1, arXiv:2504.12216, sec. 3.2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator

from cm3kit.training.rl.episode import Episode, masked_views
from cm3kit.training.rl.estimators import Estimator, EstimatorSettings, Plan, estimator


class OnePassSettings(EstimatorSettings):
    """`prompt_masked` is the share of the known ids that is masked too, anew at every update (d1: 0.15)."""

    name: str = "one-pass"
    prompt_masked: float = Field(0.0, ge=0, lt=1)


@estimator("one-pass")
class OnePass(Estimator):
    """log p(token | nothing of the answer): the fastest estimate, independent of the order of writing."""

    Settings: ClassVar[type[EstimatorSettings]] = OnePassSettings
    redraws = True

    def plan(self, episode: Episode, rng: Generator) -> Plan:
        """See `Estimator`."""
        row, opened, masked = list(episode.final), {*episode.open}, {*episode.open}
        if self.settings.prompt_masked:
            odds_T = torch.rand(len(row), generator=rng, dtype=torch.float64)
            hidden = {place for place, odd in enumerate(odds_T.tolist()) if odd < self.settings.prompt_masked}
            # The first id stays: models that predict each position at the one before it need it.
            for place in hidden - opened - {0}:
                row[place] = episode.mask
        answer = episode.answer()
        asked = {place: (token, id, 1.0) for token, (place, id, _) in enumerate(answer)}
        return Plan(tuple(masked_views(episode, row, masked, asked)), (0,) * len(answer))
