"""Training: one visible loop and what it trains."""

from cm3kit.training.interrupts import Paused
from cm3kit.training.precision import rank
from cm3kit.training.run import run

__all__ = ["Paused", "rank", "run"]
