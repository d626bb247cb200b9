"""Fréchet distance of pictures' features, each set modelled as a Gaussian (arXiv:1706.08500, eq. 6), in float64."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and covariance of features in batches, which are not kept."""

    def __init__(self) -> None:
        self.count = 0
        self._shift_D = self._sum_D = self._outer_DD = torch.zeros(0, dtype=torch.float64)

    def add(self, features_ND: Tensor) -> None:
        """Count features in."""
        x_ND = features_ND.detach().cpu().double()
        if not self.count:  # about the mean of the first ones, as raw second moments would cancel digits away
            self._shift_D = x_ND.mean(0)
            self._sum_D = torch.zeros_like(self._shift_D)
            self._outer_DD = self._sum_D.new_zeros(len(self._sum_D), len(self._sum_D))
        x_ND = x_ND - self._shift_D
        self.count += len(x_ND)
        self._sum_D += x_ND.sum(0)
        self._outer_DD.addmm_(x_ND.T, x_ND)

    @property
    def mean_D(self) -> Tensor:
        """Mean."""
        return self._shift_D + self._sum_D / self.count

    @property
    def covariance_DD(self) -> Tensor:
        """Covariance, divided by one less than the count."""
        mean_D = self._sum_D / self.count
        return (self._outer_DD - self.count * torch.outer(mean_D, mean_D)) / (self.count - 1)


def frechet(one: Moments, other: Moments) -> float:
    """|m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½).

    C₁ C₂ has the eigenvalues of the symmetric C₁^½ C₂ C₁^½, whose square roots add up to the trace; so two symmetric
    eigenproblems do, which stay real where covariances are singular and a general matrix root breaks down.
    """
    a_DD, b_DD = one.covariance_DD, other.covariance_DD
    values_D, vectors_DD = torch.linalg.eigh(a_DD)
    root_DD = (vectors_DD * values_D.clamp_min(0).sqrt()) @ vectors_DD.T
    product_DD = root_DD @ b_DD @ root_DD
    shared = torch.linalg.eigvalsh((product_DD + product_DD.T) / 2).clamp_min(0).sqrt().sum()
    apart = (one.mean_D - other.mean_D).square().sum() + a_DD.trace() + b_DD.trace() - 2 * shared
    return max(0.0, float(apart))
