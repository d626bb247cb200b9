"""How the likelihood of what a decoder wrote is estimated: one file each, in one registry.

An estimator says in which states the model is asked, and how its answers become the score of each token. Whatever it
is, its gradient is exact: scores are differentiated with respect to the answers, and the answers once more in rows of
any number (`training.rl.task`). So one that is no sum of answers, or has a loss of its own, is one more file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from cm3kit.config import Settings
from cm3kit.registry import Registry
from cm3kit.training.rl.episode import Episode, View
from cm3kit.training.rl.losses import LossSettings, Scores, clipped_loss

BUILT_IN = tuple(f"{__name__}.{name}" for name in ("one_pass", "coupled", "trajectory", "causal"))


class EstimatorSettings(Settings):
    """Base of the settings of all estimators; `name` is that of the registry."""

    name: str = "coupled"


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan for an episode: views, and for each of its K tokens the number of the pass that it counts to."""

    views: tuple[View, ...]
    steps: tuple[int, ...]


class Estimator(ABC):
    """Scores of tokens.

    Attributes:
        Settings: a subclass of `EstimatorSettings`.
        decoder: the decoder whose episodes it scores.
        redraws: whether every update of a round asks in other states.
    """

    Settings: ClassVar[type[EstimatorSettings]] = EstimatorSettings
    decoder: ClassVar[str] = "diffusion"
    redraws: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def plan(self, episode: Episode, rng: Generator) -> Plan:
        """The plan for an episode, with random numbers of (seed, update, row)."""

    def combine(self, plans: Sequence[Plan], logp_N: Tensor) -> Tensor:
        """Scores (K,) of the tokens of all plans, in order, from the N answers to all of their views.

        By default each is the sum of its answers, weighed by their `shares`.
        """
        first, token_N, share_N = 0, list[int](), list[float]()
        for plan in plans:
            for view in plan.views:
                token_N += [first + token for token in view.tokens]
                share_N += view.shares
            first += len(plan.steps)
        weighed_N = logp_N * torch.tensor(share_N, dtype=logp_N.dtype)
        return logp_N.new_zeros(first).index_add(0, torch.tensor(token_N, dtype=torch.long), weighed_N)

    def loss(self, scores: Scores, settings: LossSettings) -> tuple[Tensor, dict[str, float]]:
        """The scalar loss of a batch, and figures; see `losses.clipped_loss`."""
        return clipped_loss(scores, settings)


estimator: Registry[type[Estimator]] = Registry("estimator")


def read_settings(given: Any) -> Any:
    """The settings of the estimator that a mapping, or a name, stands for, for a field of a recipe."""
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping):
        return given
    name = given.get("name", "coupled")
    kind = known()[name].Settings if isinstance(name, str) else EstimatorSettings
    return kind.model_validate({**given, "name": name})


def known() -> Registry[type[Estimator]]:
    """All estimators: those that ship, and those of plug-ins."""
    for name in BUILT_IN:
        import_module(name)
    return estimator
