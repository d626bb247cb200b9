"""Noise schedules of absorbing-state diffusion: the share of unmasked ids at time t, and the weight of masked ones.

With survival α(t), α(0) = 1, α(1) = 0, the bound on −log p weights the cross-entropy of masked ids by
−α'(t) / (1 − α(t)) (MDLM, arXiv:2406.07524, eq. 10). Its value does not depend on the schedule; its variance does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator

from cm3kit.registry import Registry

EPSILON = 1e-3


@dataclass(frozen=True, slots=True)
class Noise:
    """A schedule: `alpha(t)` is the share of ids that survive, `slope(t)` is −α'(t), for t in (0, 1]."""

    alpha: Callable[[float], float]
    slope: Callable[[float], float]

    def weight(self, t: float, snr_cap: float | None = None) -> float:
        """Weight of a masked id; with `snr_cap` γ the softly capped dσ / (e^σ − 1 + 1/γ) of UniDisc (arXiv:2503.20853).

        With σ = −log α both are −α'(t) / α(t) over e^σ − 1, to which the cap adds 1/γ.
        """
        alpha = self.alpha(t)
        return self.slope(t) / (1 - alpha + (alpha / snr_cap if snr_cap else 0.0))

    def rest_weight(self, t: float, snr_cap: float | None = None) -> float:
        """Weight of an id that is unmasked at t and predicted in the complementary copy.

        That copy masks the share α(t). The weight is `weight` with α(t) instead of 1 − α(t) but with the slope at t,
        since t is drawn: the mean over t is again the bound, for any schedule.
        """
        alpha = max(self.alpha(t), EPSILON)
        return self.slope(t) / (alpha + ((1 - alpha) / snr_cap if snr_cap else 0.0))


schedule: Registry[Noise] = Registry("noise schedule")

schedule("linear")(Noise(lambda t: 1 - t, lambda t: 1.0))
schedule("log-linear")(Noise(lambda t: 1 - (1 - EPSILON) * t, lambda t: 1 - EPSILON))
schedule("cosine")(
    Noise(
        lambda t: 1 - math.cos(math.pi / 2 * (1 - t)), lambda t: math.pi / 2 * math.sin(math.pi / 2 * (1 - t))
    )
)


def _geometric(least: float, most: float) -> Noise:
    """σ runs from `least` to `most` in a geometric progression (MDLM, app. E)."""
    ratio = most / least

    def sigma(t: float) -> float:
        return float(least * ratio**t)

    return Noise(lambda t: math.exp(-sigma(t)), lambda t: sigma(t) * math.log(ratio) * math.exp(-sigma(t)))


schedule("geometric")(_geometric(1e-4, 20.0))


def times(count: int, rng: Generator, low: float = EPSILON, high: float = 1.0) -> list[float]:
    """`count` times in [low, high), one in each of `count` equal parts, in random order (MDLM, sec. 3.5)."""
    start = float(torch.rand((), generator=rng, dtype=torch.float64))
    spread = [(start + index / count) % 1.0 for index in range(count)]
    order = torch.randperm(count, generator=rng).tolist()
    return [low + (high - low) * spread[index] for index in order]
