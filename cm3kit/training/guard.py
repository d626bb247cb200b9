"""Watch for losses and gradients that are not finite: name what is to blame, and go back to where all was well."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

PATIENCE = 3  # so many bad steps in a row
TOTALS = {"loss", "norm", "rate"}


class Guard:
    """Counts bad steps in a row. Only after a first one does it look for who is to blame, so it costs nothing else."""

    def __init__(self) -> None:
        self.bad = 0
        self.culprit = ""

    def look(self, figures: Mapping[str, float], model: nn.Module) -> None:
        """Find the culprit, before the gradients are clipped, which would spread it over all of them."""
        if self.bad:
            self.culprit = culprit(figures, model)

    def count(self, figures: Mapping[str, float]) -> bool:
        """Note a step; True where patience is at its end."""
        self.bad = 0 if math.isfinite(figures["loss"] + figures["norm"]) else self.bad + 1
        return self.bad >= PATIENCE

    def forgive(self) -> None:
        """Start counting anew."""
        self.bad = 0


def culprit(figures: Mapping[str, float], model: nn.Module) -> str:
    """The first term of the loss that is not finite, or else the first weight or gradient."""
    terms = [name for name, each in figures.items() if name not in TOTALS and not math.isfinite(each)]
    if terms:
        return f"the term {terms[0]}"
    for name, each in model.named_parameters():
        if not bool(torch.isfinite(each).all()):
            return f"the weight {name}"
        if each.grad is not None and not bool(torch.isfinite(each.grad).all()):
            return f"the gradient of {name}"
    return "the loss"
