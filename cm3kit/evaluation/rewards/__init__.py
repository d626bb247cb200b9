"""Rewards of reinforcement learning that use what evaluation has: the drawn picture judged, and words with pictures."""

from __future__ import annotations

from cm3kit.evaluation.rewards import agreement, judged

__all__ = ["agreement", "judged"]
