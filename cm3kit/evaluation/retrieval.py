"""Retrieval of the named picture by a generated one: nearest neighbour among all pictures in a fixed feature.

The feature of a picture is its CIE Lab colour at 16 × 16 (D65), with the magnitude of the lightness gradient at
16 × 16 beside it, each scaled to unit variance over the reference pictures. It has no learned part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_WHITE = (0.95047, 1.0, 1.08883)


def lab(pixels_BCHW: Tensor) -> Tensor:
    """CIE Lab (B, 3, H, W) of uint8 sRGB pixels (IEC 61966-2-1, D65)."""
    s = pixels_BCHW.float() / 255
    linear = torch.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,bjhw->bihw", torch.tensor(_TO_XYZ), linear) / torch.tensor(_WHITE)[:, None, None]
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(1e-9) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def features(pixels_BCHW: Tensor, side: int = 16) -> Tensor:
    """Colour and edges of pictures: (B, 4 · side²)."""
    colour_BCHW = lab(pixels_BCHW)
    light_B1HW = colour_BCHW[:, :1]
    across = F.pad(light_B1HW[..., 1:] - light_B1HW[..., :-1], (0, 1))
    down = F.pad(light_B1HW[..., 1:, :] - light_B1HW[..., :-1, :], (0, 0, 0, 1))
    edges_B1HW = (across.square() + down.square()).sqrt()
    pooled = F.adaptive_avg_pool2d(torch.cat([colour_BCHW, edges_B1HW], 1), side)
    return pooled.flatten(1)


@dataclass(frozen=True)
class Index:
    """Reference pictures by name."""

    names: tuple[str, ...]
    features_ND: Tensor
    scale_D: Tensor

    @classmethod
    def build(cls, names: Sequence[str], pixels_NCHW: Tensor) -> Index:
        """Index all reference pictures (uint8, one size)."""
        found_ND = features(pixels_NCHW)
        side = found_ND.shape[1] // 4
        # One scale per channel, so that a pixel of little variance does not count as much as another.
        spread = torch.stack([each.std() for each in torch.split(found_ND, side, 1)]).clamp_min(1e-6)
        return cls(tuple(names), found_ND, spread.repeat_interleave(side))

    def ranks(self, pixels_BCHW: Tensor, names: Sequence[str]) -> Tensor:
        """Rank of the named reference for each picture, 0 = nearest; exact duplicates of it count as it."""
        asked_BD, kept_ND = features(pixels_BCHW) / self.scale_D, self.features_ND / self.scale_D
        distances_BN = torch.cdist(asked_BD, kept_ND)
        targets_B = torch.tensor([self.names.index(name) for name in names])
        own_B1 = distances_BN.gather(1, targets_B[:, None])
        return (distances_BN < own_B1 - 1e-4).sum(1)


def top(ranks_B: Tensor, k: int) -> float:
    """Share of ranks below k."""
    return float((ranks_B < k).float().mean())


def thumbnail(picture: Image.Image) -> np.ndarray[Any, Any]:
    """32 × 32 pixels over white."""
    over = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return np.asarray(over.convert("RGB").resize((32, 32), Image.Resampling.BOX), dtype=np.float32)


def most_different(pictures: Sequence[Image.Image], least: float = 12.0) -> int:
    """The size of the largest set of pictures that all differ, by more than `least` of 255 on average at 32 × 32."""
    small = [thumbnail(each) for each in pictures]
    for size in range(len(small), 1, -1):
        for chosen in combinations(small, size):
            if all(float(np.abs(a - b).mean()) > least for a, b in combinations(chosen, 2)):
                return size
    return min(1, len(small))
