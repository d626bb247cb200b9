"""Whether a text has about the target length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from cm3kit.training.rl.rewards import RewardContext, RewardSettings, Sample, reward


class LengthSettings(RewardSettings):
    """`tokens` is the target length where neither the page nor the column `length` of the prompt's row gives one.

    Within `slack` of the target (a share of it, at least one id) the reward is 1; it is 0 at twice the target and at 0.
    """

    tokens: int | None = Field(None, ge=1)
    slack: float = Field(0.25, ge=0, lt=1)


@reward("length")
class Length:
    """1 within the slack, less outside; None where there is no target. A text that was cut gets 0."""

    Settings: ClassVar[type[RewardSettings]] = LengthSettings

    def __init__(self, settings: Any, context: RewardContext) -> None:
        self._settings = settings

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[float | None]:
        """See `Reward`."""
        return [self._of(sample) for sample in samples]

    def _of(self, sample: Sample) -> float | None:
        known = [each for each in sample.hints if each is not None]
        told = sample.meta.get("length", self._settings.tokens)
        wish = sum(known) if known and len(known) == len(sample.hints) else told
        if not isinstance(wish, int | float) or isinstance(wish, bool) or wish < 1:
            return None
        if not sample.ended:
            return 0.0
        slack = max(1.0, self._settings.slack * wish)
        beyond = max(0.0, abs(sample.tokens - wish) - slack)
        return max(0.0, 1 - beyond / max(1e-9, wish - slack)) if wish > slack else float(beyond == 0)
