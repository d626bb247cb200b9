"""What the diffusion decoder hands back for a board, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cm3kit.types import Fill, Trajectory


@dataclass(slots=True)
class Cost:
    """What one board took; guided boards pay twice for each pass.

    Attributes:
        full: forward passes over all of its places.
        partial: forward passes over some of them, the rest from a cache.
        token_forwards: places that went through the layers, summed over passes.
        head_rows: places that went through the language model head.
        wasted: passes after which nothing was committed.
    """

    full: int = 0
    partial: int = 0
    token_forwards: int = 0
    head_rows: int = 0
    wasted: int = 0

    @property
    def forwards(self) -> int:
        """Forward passes of either kind (the number of function evaluations)."""
        return self.full + self.partial

    def add(self, places: int, length: int) -> None:
        """Count a pass over `places` of the `length` places of the board; over none, it was no pass."""
        self.full += places == length > 0
        self.partial += 0 < places < length
        self.token_forwards += places


@runtime_checkable
class Metered(Protocol):
    """A denoiser that says how much it computed; of any other every place of every pass is counted."""

    @property
    def computed(self) -> tuple[int, ...]:
        """For each row the places that the latest call, `logits` or `open_block`, took through the layers."""


@dataclass(frozen=True, slots=True)
class Written:
    """A filled board.

    Attributes:
        fills: what was written into each stretch, without its first `<eoss>` and what follows. Their
            `logprob` sums over that `<eoss>` too.
        trajectory: in which order.
        cost: at what cost.
        ids: the whole board, nothing masked.
    """

    fills: tuple[Fill, ...]
    trajectory: Trajectory
    cost: Cost
    ids: tuple[int, ...]
