"""Distances between pictures that need no downloaded weights; all take `x_BCHW` in [−1, 1] and return a scalar."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def laplacian(x_BCHW: Tensor, y_BCHW: Tensor, levels: int = 3) -> Tensor:
    """Mean L1 distance of Laplacian pyramids (Burt & Adelson 1983), with equal weights of all levels."""
    total = x_BCHW.new_zeros(())
    difference_BCHW = x_BCHW - y_BCHW  # the pyramid is linear, so one of the difference is sufficient
    for _ in range(levels):
        small_BCHW = F.avg_pool2d(difference_BCHW, 2)
        total = (
            total
            + (difference_BCHW - F.interpolate(small_BCHW, difference_BCHW.shape[2:], mode="nearest"))
            .abs()
            .mean()
        )
        difference_BCHW = small_BCHW
    return total + difference_BCHW.abs().mean()


def ssim(x_BCHW: Tensor, y_BCHW: Tensor, window: int = 7) -> Tensor:
    """Mean structural similarity with a uniform window and a data range of 2 (Wang et al. 2004, eq. 13)."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    pooled = F.avg_pool2d(
        torch.cat([x_BCHW, y_BCHW, x_BCHW.square(), y_BCHW.square(), x_BCHW * y_BCHW]), window, stride=1
    )
    mx, my, mxx, myy, mxy = pooled.chunk(5)
    vx, vy, vxy = mxx - mx.square(), myy - my.square(), mxy - mx * my
    score: Tensor = ((2 * mx * my + c1) * (2 * vxy + c2)) / (
        (mx.square() + my.square() + c1) * (vx + vy + c2)
    )
    return score.mean()


def psnr(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture of uint8 pixels, in dB: shape (B,)."""
    error_B = (x_BCHW.float() - y_BCHW.float()).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
    return 10 * torch.log10(255**2 / error_B)
