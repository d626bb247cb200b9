"""Complementary masks (coupled-GRPO of DiffuCoder, arXiv:2506.20639, sec. 5 and app. B.2)."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Generator

from cm3kit.training.rl.episode import Episode, View, masked_views
from cm3kit.training.rl.estimators import Estimator, EstimatorSettings, Plan, estimator

LEAST = 1e-6  # a time nearer to 0 or 1 would divide by nothing where a mask is all there is


class CoupledSettings(EstimatorSettings):
    """Times are drawn from [low, high) for each answer; `full` adds a pass with all of the answer masked.

    Without `full` and from 0 to 1 the score is an unbiased estimate of the evidence bound (NELBO).
    """

    name: str = "coupled"
    low: float = Field(0.2, ge=0, le=1)
    high: float = Field(0.8, ge=0, le=1)
    full: bool = True

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}")
        return self


@estimator("coupled")
class Coupled(Estimator):
    """The answer under a mask and under its complement, each token where it is masked, over twice the odds of that.

    With `full` half the log-probability under a mask over everything is added, as in the paper.
    """

    Settings: ClassVar[type[EstimatorSettings]] = CoupledSettings
    redraws = True

    def plan(self, episode: Episode, rng: Generator) -> Plan:
        """See `Estimator`."""
        low, high = max(LEAST, self.settings.low), min(1 - LEAST, self.settings.high)
        time = low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))
        odds = torch.rand(len(episode.open), generator=rng, dtype=torch.float64).tolist()
        masked = {place for place, odd in zip(episode.open, odds, strict=True) if odd < time}
        return coupled_plan(episode, masked, time, self.settings.full)


def coupled_plan(episode: Episode, masked: Collection[int], time: float, full: bool = True) -> Plan:
    """The plan for a mask that was drawn with the odds `time`, its complement, and with all masked."""
    answer, row = episode.answer(), episode.final
    views: list[View] = []
    for hidden, odds in (({*masked}, time), ({*episode.open} - {*masked}, 1 - time)):
        asked = {
            place: (token, id, 0.5 / odds) for token, (place, id, _) in enumerate(answer) if place in hidden
        }
        views += masked_views(episode, row, hidden, asked)
    if full:
        asked = {place: (token, id, 0.5) for token, (place, id, _) in enumerate(answer)}
        views += masked_views(episode, row, {*episode.open}, asked)
    return Plan(tuple(views), (0,) * len(answer))
