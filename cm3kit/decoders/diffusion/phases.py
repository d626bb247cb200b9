"""How one block of a board is written, by each of the samplers: which slots a pass scores, and which it writes.

`Confidence` is the loop of LLaDA (arXiv:2502.09992, alg. 5) with quota, order and accept rule exchangeable.
`Reverse` simulates the reverse process, in steps or event by event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor

from cm3kit.decoders.diffusion import accepts, axes, orders, quotas  # noqa: F401  (they register themselves)
from cm3kit.decoders.diffusion.scores import Scores
from cm3kit.decoders.diffusion.settings import DiffusionConfig


class Phase(Protocol):
    """One block of one board on its way.

    Attributes:
        blanks: slots that were open at its start.
        step: index of the pass that comes next, of `steps` that are planned.
    """

    blanks: int
    step: int
    steps: int

    def time(self, left: int) -> float:
        """Diffusion time of the block at the pass that was asked for last, with `left` slots open."""

    def want(self, slots: Sequence[int], rng: Generator) -> list[int]:
        """Which of the block's open slots the next pass must score; never none."""

    def choose(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """Of the scored slots those to write now: indices (K,), best first, and the scores (M,) of all."""


Opener = Callable[[int], Phase]
"""`opener(blanks)`: the phase of a block with so many open slots."""


class Confidence:
    """Score every open slot, and write the best of them."""

    def __init__(
        self, plan: Sequence[int], order: Callable[[Scores], Tensor], accept: Callable[[Tensor, int], Tensor]
    ) -> None:
        self._plan, self._order, self._accept = plan, order, accept
        self.blanks, self.steps, self.step = sum(plan), len(plan), 0

    def time(self, left: int) -> float:
        """The share of the block that is open."""
        return left / self.blanks

    def want(self, slots: Sequence[int], rng: Generator) -> list[int]:
        """All of them."""
        return list(slots)

    def choose(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """The accepted ones. After the planned steps the last quota holds until nothing is open."""
        score_M = self._order(scores)
        quota = min(self._plan[min(self.step, self.steps - 1)], len(score_M))
        accepted_M = self._accept(score_M, quota)
        self.step += 1
        ranked_M = score_M.sort(descending=True, stable=True).indices
        # A rule of somebody else's that accepts nothing would go on for ever.
        return ranked_M[accepted_M[ranked_M]] if bool(accepted_M.any()) else ranked_M[:1], score_M


class Reverse:
    """The reverse process of alpha = 1 - t, in which every slot is written at a uniform time of its own.

    In `steps` steps from t = 1 - i/S to s = 1 - (i + 1)/S an open slot is written with probability 1 - s/t
    (ancestral sampling; MDLM, arXiv:2406.07524, eq. 7): those whose time lies between s and t, with the model
    at t. Without steps each is written at its own time, and the next of n slots comes at t u^(1/n)
    (first-hitting sampling, arXiv:2409.02908, alg. 2). The times do not depend on the model, so that steps
    that write nothing need no pass even where the model looks at the time, and at 0 nothing is open.
    """

    def __init__(self, blanks: int, steps: int | None = None) -> None:
        self.blanks, self.steps, self.step = blanks, steps or blanks, 0
        self._grid = steps
        self._now, self._time = 1.0, 1.0
        self._when: dict[int, float] = {}
        self._written: list[float] = []

    def time(self, left: int) -> float:
        """The time t of the step, or that of the slot."""
        return self._time

    def want(self, slots: Sequence[int], rng: Generator) -> list[int]:
        """Those that the next step writes."""
        # A slot that was opened again has the rest of the time.
        new = [slot for slot in slots if self._when.get(slot, 2.0) > self._now]
        dice = torch.rand(len(new), generator=rng, dtype=torch.float64).tolist()
        self._when.update((slot, (1 - die) * self._now) for slot, die in zip(new, dice, strict=True))
        self._time = max(self._tick(self._when[slot]) for slot in slots)
        chosen = [slot for slot in slots if self._tick(self._when[slot]) == self._time]
        self._written = [self._when.pop(slot) for slot in chosen]
        self._now = self._time - 1 / self._grid if self._grid else self._time
        self.step += 1
        return chosen

    def choose(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """All that were scored, in the order of their times."""
        score_M = torch.tensor(self._written, dtype=torch.float64)
        return score_M.sort(descending=True, stable=True).indices, score_M

    def _tick(self, when: float) -> float:
        return max(1, math.ceil(when * self._grid)) / self._grid if self._grid else when


def make_opener(config: DiffusionConfig, ends: Collection[int]) -> Opener:
    """How blocks are begun under these settings.

    Args:
        config: the settings.
        ends: end ids, which `config.eoser` ranks lower.

    Raises:
        ConfigError: an axis is unknown (`unknown_name`), or one of its options is (`bad_config`).
    """
    if config.sampler == "first-hitting":
        return Reverse
    if config.sampler == "ancestral":
        return lambda blanks: Reverse(blanks, config.steps or blanks)
    order, accept = axes.bind(axes.order, config.order), axes.bind(axes.accept, config.accept)
    if config.eoser is not None:
        order = orders.eoser(order, config.eoser, ends)
    return lambda blanks: Confidence(plan_block(config, blanks), order, accept)


def plan_block(config: DiffusionConfig, blanks: int) -> list[int]:
    """How many of a block's slots each pass is to write; ancestral steps are taken at their mean."""
    steps = config.steps or blanks
    if config.sampler == "first-hitting":
        return [1] * blanks
    if config.sampler == "ancestral":
        counts = [blanks // steps + (step < blanks % steps) for step in range(steps)]
    else:
        counts = axes.bind(axes.quota, config.quota)(blanks, steps)
    # A step that writes nothing would be a pass for nothing.
    return [count for count in counts if count]
