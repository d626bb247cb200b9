"""PatchGAN discriminator (arXiv:1611.07004), without batch norm, which fails on small batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

Norm = Literal["group", "spectral"]


class PatchDiscriminator(nn.Module):
    """`forward(x_BCHW)` of pixels in [−1, 1] is one logit per patch, in fp32: (B, 1, h, w).

    Args:
        channels: of the first layer; they double up to a factor of eight.
        layers: with stride 2; three have a receptive field of 70 × 70 pixels.
        norm: GroupNorm between layers, or spectral norm of every layer's weight (arXiv:1802.05957).
    """

    def __init__(self, channels: int = 64, layers: int = 3, norm: Norm = "group") -> None:
        super().__init__()
        widths = [channels * min(2**index, 8) for index in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for index, (before, width) in enumerate(pairwise(widths), start=1):
            parts.append(nn.Conv2d(before, width, 4, 2 if index < layers else 1, 1))
            parts += [nn.GroupNorm(math.gcd(32, width), width)] if norm == "group" else []
            parts.append(nn.LeakyReLU(0.2))
        parts.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for each in parts:
            if isinstance(each, nn.Conv2d):
                nn.init.normal_(each.weight, 0.0, 0.02)
                nn.init.zeros_(each.bias)  # type: ignore[arg-type]
        self.main = nn.Sequential(*(_spectral(parts) if norm == "spectral" else parts))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits of patches."""
        logits_B1HW: Tensor = self.main(x_BCHW)
        return logits_B1HW.float()


def _spectral(parts: Sequence[nn.Module]) -> list[nn.Module]:
    return [spectral_norm(each) if isinstance(each, nn.Conv2d) else each for each in parts]
