"""The inputs of the four axes of the diffusion decoder: one row at one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor

Schedule = Callable[[int, int], "list[int]"]
"""`schedule(blanks, steps)`: how many slots each step writes; sums to `blanks`, never negative."""

Order = Callable[["Scores"], Tensor]
"""`order(scores)`: (M,) float64, larger goes first; in [0, 1] except for noise-driven orders."""

Accept = Callable[[Tensor, int], Tensor]
"""`accept(score_M, planned)`: bool (M,), which slots are written now; never none of them."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The M open slots of one row that may be written at this step, and what the model says of V ids there.

    Attributes:
        slots_M: positions in the flat canvas, ascending.
        logp_MV: fp32 log-probabilities that confidence is read from: of the model itself (after guidance,
            ids that are not allowed there at -inf, temperature 1, nothing cut), or of the distribution that
            the picks were drawn from, as the settings say.
        picks_M: the candidate of each slot.
        step: index of this step, of `steps` in all: of the block, or of all blocks where their sizes ascend.
        rng: the row's own generator.
        asked: steps that were asked for, of which a plan may need fewer; 0 if none were.
    """

    slots_M: Tensor
    logp_MV: Tensor
    picks_M: Tensor
    step: int
    steps: int
    rng: Generator
    asked: int = 0

    @property
    def done(self) -> float:
        """From 0 at the first step to 1 at the last; 1 if there is but one."""
        return self.step / (self.steps - 1) if self.steps > 1 else 1.0

    @property
    def picked_M(self) -> Tensor:
        """Log-probability of each pick, (M,) fp32."""
        picked: Tensor = self.logp_MV.gather(-1, self.picks_M[:, None])[:, 0]
        return picked
