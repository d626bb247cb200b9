"""A score that chooses among candidates: the darkest picture. Try: cm3kit sample run … --best-of 4 --score dark."""

import numpy as np

from cm3kit.batch.choice import Choice, judge
from cm3kit.fill.batching import Order
from cm3kit.fill.kit import Kit, Result


@judge("dark")
class Dark:
    """Larger is better: 1 is black."""

    def __init__(self, kit: Kit, what: str) -> None:
        self.kit = kit

    def __call__(self, order: Order, made: Result) -> Choice:
        """How dark a candidate is."""
        return Choice(1 - float(np.asarray(made.image.convert("L")).mean()) / 255 if made.image else 0.0)
