"""Whether there is a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from cm3kit.training.rl.rewards import RewardContext, RewardSettings, Sample, reward


class PictureSettings(RewardSettings):
    """`spread` is the standard deviation of grey values (0 to 255) from which a picture shows something."""

    spread: float = Field(4.0, ge=0)


@reward("picture")
class Picture:
    """1 for a picture that is not of one colour; 0 for none."""

    Settings: ClassVar[type[RewardSettings]] = PictureSettings

    def __init__(self, settings: Any, context: RewardContext) -> None:
        self._spread = settings.spread

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[float | None]:
        """See `Reward`."""
        return [
            float(each.image is not None and np.asarray(each.image.convert("L")).std() >= self._spread)
            for each in samples
        ]
