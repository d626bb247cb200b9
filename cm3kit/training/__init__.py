"""Training: one visible loop and what it trains."""

from cm3kit.training.run import run

__all__ = ["run"]
