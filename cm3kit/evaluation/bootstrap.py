"""Intervals of ratios by the bootstrap over groups of rows, with fixed random numbers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from cm3kit.rng import generator

Ratio = tuple[float, float]
"""What a row adds to a figure's numerator and denominator."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its percentile interval."""

    value: float
    low: float
    high: float

    def record(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap(
    ratios: Sequence[Ratio], groups: Sequence[Hashable], *, minus: Sequence[Ratio] | None = None,
    draws: int = 2000, level: float = 0.95, seed: int = 0,
) -> Interval:  # fmt: skip
    """Σ numerators / Σ denominators, and its interval where whole groups are drawn with replacement (Efron 1979).

    Args:
        groups: the group of each row.
        minus: of another system on the same rows; the figure is then the difference of the two.
        draws: resamples. level: share of them that the interval holds.
    """
    numbers: dict[Hashable, int] = {}
    group_N = torch.tensor([numbers.setdefault(each, len(numbers)) for each in groups])
    sums_KG2 = torch.stack(
        [_summed(each, group_N, len(numbers)) for each in (ratios, *([minus] if minus is not None else []))]
    )
    rng, count = generator(seed, len(numbers)), len(numbers)
    found = []
    for _ in range(draws):
        drawn_G = torch.randint(count, (count,), generator=rng)
        found.append(_figure(sums_KG2[:, drawn_G]))
    drawn = torch.tensor([each for each in found if each == each], dtype=torch.float64)
    value = _figure(sums_KG2)
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    rest = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(drawn, rest).tolist()
    return Interval(value, low, high)


def _summed(ratios: Sequence[Ratio], group_N: torch.Tensor, count: int) -> torch.Tensor:
    return torch.zeros(count, 2, dtype=torch.float64).index_add_(
        0, group_N, torch.tensor(ratios, dtype=torch.float64)
    )


def _figure(sums_KG2: torch.Tensor) -> float:
    total_K2 = sums_KG2.sum(1)
    figures = (total_K2[:, 0] / total_K2[:, 1]).tolist()
    return float(figures[0] - sum(figures[1:]))


def ratios_of(figures: Sequence[Mapping[str, Ratio]], name: str) -> list[Ratio]:
    """One figure of all rows; a row that does not have it adds nothing."""
    return [each.get(name, (0.0, 0.0)) for each in figures]
