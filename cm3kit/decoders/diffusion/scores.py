"""The inputs of the four axes of the diffusion decoder: one row at one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Generator, Tensor

Schedule = Callable[[int, int], "list[int]"]
"""`schedule(blanks, steps)`: how many slots each step writes; sums to `blanks`, never negative."""

Order = Callable[["Scores"], Tensor]
"""`order(scores)`: (M,) float64, larger goes first; in [0, 1] except for noise-driven orders."""

Accept = Callable[[Tensor, int], Tensor]
"""`accept(score_M, planned)`: bool (M,), which slots are written now; never none of them."""

Statistic = Callable[[Tensor, Tensor], Tensor]
"""`statistic(logp_NV, picks_N)`: floats (N,) or (N, R), those of a slot by its own log-probabilities and pick alone.

It is given the slots of many rows at once, on the model's device, and must not read from there (`item`, `bool`).
"""


class Told(Protocol):
    """What a pass has found at the M slots of one row, wherever it lies."""

    def logp(self) -> Tensor:
        """Log-probabilities (M, V), on the CPU."""

    def of(self, statistic: Statistic) -> Tensor:
        """A statistic of each, (M,) or (M, R), on the CPU."""


class Scores:
    """The M open slots of one row that may be written at this step, and what the model says of V ids there.

    An order that can is better off with `of` than with `logp_MV`, which is as wide as the vocabulary and must be copied
    from the model's device.

    Args:
        logp_MV: the log-probabilities, or where to ask for them.

    Attributes:
        slots_M: positions in the flat canvas, ascending.
        picks_M: the candidate of each slot.
        step: index of this step, of `steps` in all: of the block, or of all blocks where their sizes ascend.
        rng: the row's own generator.
        asked: steps that were asked for, of which a plan may need fewer; 0 if none were.
    """

    __slots__ = ("_told", "asked", "picks_M", "rng", "slots_M", "step", "steps")

    def __init__(
        self,
        slots_M: Tensor,
        logp_MV: Tensor | Told,
        picks_M: Tensor,
        step: int,
        steps: int,
        rng: Generator,
        asked: int = 0,
    ) -> None:
        self.slots_M, self.picks_M, self._told = slots_M, picks_M, logp_MV
        self.step, self.steps, self.rng, self.asked = step, steps, rng, asked

    @property
    def logp_MV(self) -> Tensor:
        """Fp32 log-probabilities that confidence is read from.

        They are those of the model itself (after guidance, ids that are not allowed there at -inf, temperature 1,
        nothing cut), or of the distribution that the picks were drawn from, as the settings say.
        """
        return self._told if isinstance(self._told, Tensor) else self._told.logp()

    def of(self, statistic: Statistic) -> Tensor:
        """A statistic of each slot, (M,) or (M, R).

        All rows of a pass are computed together where the model is; give a function of a module, which is known again.
        """
        if isinstance(self._told, Tensor):
            return statistic(self._told, self.picks_M)
        return self._told.of(statistic)

    @property
    def done(self) -> float:
        """From 0 at the first step to 1 at the last; 1 if there is but one."""
        return self.step / (self.steps - 1) if self.steps > 1 else 1.0

    @property
    def picked_M(self) -> Tensor:
        """Log-probability of each pick, (M,) fp32."""
        return self.of(picked)


def picked(logp_NV: Tensor, picks_N: Tensor) -> Tensor:
    """Log-probability of each pick."""
    return logp_NV.gather(-1, picks_N[:, None])[:, 0]
