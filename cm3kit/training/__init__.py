"""Training: one loop for all tasks, and the tasks."""

from cm3kit.training.interrupts import Paused
from cm3kit.training.precision import rank
from cm3kit.training.run import run

__all__ = ["Paused", "rank", "run"]
