"""The best checkpoint so far, by a figure of the log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Best:
    """Keeps the mean of a figure since the last checkpoint was due, and where it was lowest.

    Args:
        figure: its name; None keeps nothing.
    """

    def __init__(self, figure: str | None) -> None:
        self.figure = figure
        self.total, self.count = 0.0, 0
        self.lowest, self.step = math.inf, -1

    @property
    def folders(self) -> tuple[str, ...]:
        """The name of the best checkpoint, if there is one."""
        return () if self.step < 0 else (f"step-{self.step:08d}",)

    def add(self, figures: Mapping[str, float]) -> None:
        """Count a step's figure; a step that has none, or one that is not finite, counts for nothing."""
        value = figures.get(self.figure or "", math.nan)
        if math.isfinite(value):
            self.total, self.count = self.total + value, self.count + 1

    def settle(self, step: int) -> None:
        """Called when a checkpoint of this step is due: whether it is the best; the mean starts again."""
        if self.count and self.total / self.count < self.lowest:
            self.lowest, self.step = self.total / self.count, step
        self.total, self.count = 0.0, 0

    def state(self) -> dict[str, Any]:
        """The state for a resumed run, as JSON."""
        lowest = None if math.isinf(self.lowest) else self.lowest
        known = {"figure": self.figure, "total": self.total, "count": self.count}
        return known | {"lowest": lowest, "step": self.step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state, unless it is of another figure."""
        if state.get("figure") != self.figure:
            return
        self.total, self.count = float(state.get("total", 0.0)), int(state.get("count", 0))
        lowest = state.get("lowest")
        self.lowest, self.step = math.inf if lowest is None else float(lowest), int(state.get("step", -1))
