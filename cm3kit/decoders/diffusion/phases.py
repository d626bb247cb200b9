"""How one block of a board is written, by each of the samplers: which slots a pass scores, and which it writes.

`Confidence` is the loop of LLaDA (arXiv:2502.09992, alg. 5) with quota, order and accept rule exchangeable.
`Ancestral` and `FirstHitting` simulate the reverse process of the linear schedule alpha = 1 - t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor

from cm3kit.decoders.diffusion import axes
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


class Ancestral:
    """Reverse steps t = 1 - i/S to s = 1 - (i + 1)/S: an open slot is written with probability 1 - s/t.

    MDLM (arXiv:2406.07524, eq. 7). Which slots a step writes does not depend on the model, so steps that
    write nothing need no pass, whether or not the model looks at the time; at s = 0 nothing stays masked.
    """

    def __init__(self, blanks: int, steps: int) -> None:
        self.blanks, self.steps, self.step = blanks, steps, 0
        self._at, self._dice = 0, torch.empty(0, dtype=torch.float64)

    def time(self, left: int) -> float:
        """The time t of the step."""
        return 1 - self._at / self.steps

    def want(self, slots: Sequence[int], rng: Generator) -> list[int]:
        """Those that the next step with any writes."""
        while True:
            dice_M = torch.rand(len(slots), generator=rng, dtype=torch.float64)
            self._at = min(self.step, self.steps - 1)
            written_M = dice_M < 1 / (self.steps - self._at)
            self.step += 1
            if bool(written_M.any()):
                self._dice = dice_M[written_M]
                return [slots[index] for index in written_M.nonzero()[:, 0].tolist()]

    def choose(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """All that were scored, in the order of their dice."""
        score_M = 1 - self._dice
        return score_M.sort(descending=True, stable=True).indices, score_M


class FirstHitting:
    """One slot a pass, at the time when the continuous process writes it (arXiv:2409.02908, alg. 2).

    With n open slots the next time is t u^(1/n) for uniform u, and the slot is any of them.
    """

    def __init__(self, blanks: int) -> None:
        self.blanks, self.steps, self.step = blanks, blanks, 0
        self._time = 1.0

    def time(self, left: int) -> float:
        """The time of the event."""
        return self._time

    def want(self, slots: Sequence[int], rng: Generator) -> list[int]:
        """One of them."""
        when, where = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        self._time *= when ** (1 / len(slots))
        self.step += 1
        return [slots[int(where * len(slots))]]

    def choose(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """The one that was scored."""
        return torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.float64)


def make_opener(config: DiffusionConfig) -> Opener:
    """How blocks are begun under these settings.

    Raises:
        ConfigError: an axis is unknown (`unknown_name`), or one of its options is (`bad_config`).
    """
    if config.sampler == "first-hitting":
        return FirstHitting
    if config.sampler == "ancestral":
        return lambda blanks: Ancestral(blanks, config.steps or blanks)
    order, accept = axes.bind(axes.order, config.order), axes.bind(axes.accept, config.accept)
    return lambda blanks: Confidence(quotas(config, blanks), order, accept)


def quotas(config: DiffusionConfig, blanks: int) -> list[int]:
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
