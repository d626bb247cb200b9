"""An estimator of the likelihood: the evidence bound, by masks of several times. Try: train rl --estimator elbo."""

import torch
from torch import Generator

from cm3kit.training.rl.episode import Episode, View, masked_views
from cm3kit.training.rl.estimators import Estimator, EstimatorSettings, Plan, estimator


class ElboSettings(EstimatorSettings):
    """`draws` of a time and a mask for each answer."""

    name: str = "elbo"
    draws: int = 4


@estimator("elbo")
class Elbo(Estimator):
    """log p of what is masked, over the odds of that, on average over masks."""

    Settings = ElboSettings
    redraws = True

    def plan(self, episode: Episode, rng: Generator) -> Plan:
        """Times in equal parts of (0, 1), so that they are spread."""
        answer, views, draws = episode.answer(), list[View](), self.settings.draws
        for draw in range(draws):
            time = (draw + float(torch.rand((), generator=rng))) / draws + 1e-6
            odds = torch.rand(len(episode.open), generator=rng).tolist()
            hidden = {place for place, odd in zip(episode.open, odds, strict=True) if odd < time}
            asked = {
                place: (token, id, 1 / time / draws)
                for token, (place, id, _) in enumerate(answer)
                if place in hidden
            }
            views += masked_views(episode, episode.final, hidden, asked)
        return Plan(tuple(views), (0,) * len(answer))
