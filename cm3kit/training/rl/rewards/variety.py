"""How much an output differs from the others of its group: which keeps a policy from collapsing to one output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from cm3kit.training.rl.rewards import RewardContext, RewardSettings, Sample, reward
from cm3kit.training.rl.rewards.match import edit_distance

SIDE, FULL = 16, 0.25
MOST = 400  # letters of a text that are compared


@reward("variety")
class Variety:
    """The mean difference from the others: of pictures the root mean square of 16 × 16 pixels, 1 from a quarter of the
    range on; of texts the edit distance over the longer one. None for one that is alone.
    """

    Settings: ClassVar[type[RewardSettings]] = RewardSettings

    def __init__(self, settings: Any, context: RewardContext) -> None:
        pass

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[float | None]:
        """See `Reward`."""
        groups: dict[int, list[int]] = defaultdict(list)
        for number, sample in enumerate(samples):
            groups[sample.group].append(number)
        out: list[float | None] = [None] * len(samples)
        for members in groups.values():
            small = {number: _small(samples[number].image) for number in members}
            for number in members if len(members) > 1 else ():
                apart = [
                    _apart(samples[number], samples[other], small[number], small[other])
                    for other in members
                    if other != number
                ]
                out[number] = sum(apart) / len(apart)
        return out


def _small(image: Image.Image | None) -> np.ndarray[Any, Any] | None:
    return None if image is None else np.asarray(image.convert("RGB").resize((SIDE, SIDE)), float) / 255


def _apart(
    one: Sample, other: Sample, seen: np.ndarray[Any, Any] | None, beside: np.ndarray[Any, Any] | None
) -> float:
    if seen is not None and beside is not None:
        return min(1.0, float(np.sqrt(np.square(seen - beside).mean())) / FULL)
    words, against = " ".join(one.texts)[:MOST], " ".join(other.texts)[:MOST]
    return edit_distance(words, against) / max(1, len(words), len(against))
