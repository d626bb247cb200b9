"""Plain GRPO (arXiv:2402.03300): the ids of a causal decoder, each given those before it, in one forward pass."""

from __future__ import annotations

from typing import ClassVar

from torch import Generator

from cm3kit.training.rl.episode import Episode, View
from cm3kit.training.rl.estimators import Estimator, EstimatorSettings, Plan, estimator


class CausalSettings(EstimatorSettings):
    """It has none."""

    name: str = "causal"


@estimator("causal")
class Causal(Estimator):
    """log p(token | all before it)."""

    Settings: ClassVar[type[EstimatorSettings]] = CausalSettings
    decoder = "cm3"

    def plan(self, episode: Episode, rng: Generator) -> Plan:
        """See `Estimator`."""
        answer, row = episode.answer(), episode.final
        if not answer:
            return Plan((), ())
        places, ids, _ = zip(*answer, strict=True)
        view = View(row, places, ids, tuple(range(len(ids))), (1.0,) * len(ids), 0.0)
        return Plan((view,), (0,) * len(ids))
