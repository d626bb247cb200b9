"""Watch for losses and gradients that are not finite, and for spikes of the loss; and name the cause."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from cm3kit.training.parallel import local

PATIENCE = 3  # so many bad steps in a row
TOTALS = {"loss", "grad_norm", "lr"}
WINDOW, ENOUGH = 128, 32  # losses that a spike is compared with, and the least number of them

Verdict = Literal["fine", "spike", "not finite"]


class Guard:
    """Checks steps. Only after a first bad one does it search for the cause, so it costs nothing before.

    Args:
        spike: how far above the median of recent losses a loss may lie, in robust standard deviations.
    """

    def __init__(self, spike: float) -> None:
        self.spike = spike
        self.bad = 0
        self.culprit = ""
        self.recent: deque[float] = deque(maxlen=WINDOW)

    def look(self, figures: Mapping[str, float], model: nn.Module) -> None:
        """Find the cause before the gradients are clipped, which would spread it over all of them."""
        if self.bad:
            self.culprit = culprit(figures, model)

    def judge(self, loss: float, norm: float) -> Verdict:
        """Record a step, and classify it."""
        if not math.isfinite(loss + norm):
            self.bad += 1
            return "not finite"
        self.bad = 0
        verdict: Verdict = "spike" if stands_out(loss, self.recent, self.spike) else "fine"
        # Spikes count too, so that a lasting level becomes the reference.
        self.recent.append(loss)
        return verdict

    @property
    def spent(self) -> bool:
        """Whether the limit of bad steps is reached."""
        return self.bad >= PATIENCE

    def forgive(self) -> None:
        """Start counting anew."""
        self.bad = 0

    def state(self) -> dict[str, Any]:
        """The state for a resumed run, as JSON."""
        return {"bad": self.bad, "recent": list(self.recent)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take it up again."""
        self.bad = int(state.get("bad", 0))
        self.recent = deque(state.get("recent", ()), maxlen=WINDOW)


def stands_out(loss: float, recent: Iterable[float], spike: float) -> bool:
    """Whether a loss is further above the median than `spike` times (third − first quartile) / 1.349."""
    known = sorted(recent)
    if len(known) < ENOUGH:
        return False
    first, median, third = (known[len(known) * quarter // 4] for quarter in (1, 2, 3))
    # Losses that hardly differ would make a spike of any rounding.
    spread = max((third - first) / 1.349, 1e-3 * abs(median), 1e-9)
    return loss - median > spike * spread


def culprit(figures: Mapping[str, float], model: nn.Module) -> str:
    """The first term of the loss that is not finite, or else the first weight or gradient."""
    terms = [name for name, each in figures.items() if name not in TOTALS and not math.isfinite(each)]
    if terms:
        return f"the term {terms[0]}"
    for name, each in model.named_parameters():
        if not bool(torch.isfinite(local(each)).all()):
            return f"the weight {name}"
        if each.grad is not None and not bool(torch.isfinite(local(each.grad)).all()):
            return f"the gradient of {name}"
    return "the loss"
