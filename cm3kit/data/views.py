"""Several encodings (views) of one picture: shifted, rotated, scaled, on other backgrounds, with other colours.

A decoder that is trained on a single sequence of codes per picture memorises it, and does not recognise other drawings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample

from cm3kit.config import Settings


class ViewSettings(Settings):
    """Settings of the augmentation of pictures.

    Attributes:
        count: encodings per picture with transparent parts, the first without augmentation; opaque pictures, whose
            edges would be visible, have only that one.
        plain: probability of that one when a page is drawn.
        shift: largest shift as a share of width and height.
        turn: largest rotation in degrees.
        scale: range of the scaling factor.
        light: range of brightness, contrast and saturation, as factors 1 − light … 1 + light.
        grounds: probability of a coloured background instead of white.
        swap: largest share of the codes that are replaced by one of the 8 nearest of the codebook, each time a page is
            drawn with an encoding that is not plain; the share is drawn from [0, swap), and then the plain one is
            among those that are changed. Costs no encoding, and reaches opaque pictures too.
        scored: whether the codes of augmented encodings have a loss too. Without it they are read, as by captions, and
            nothing learns to draw moved pictures; an example in which nothing else has a loss is left out.
    """

    count: int = Field(1, ge=1)
    plain: float = Field(0.4, ge=0, le=1)
    shift: float = Field(0.06, ge=0, le=0.5)
    turn: float = Field(8.0, ge=0, le=180)
    scale: tuple[float, float] = (0.86, 1.06)
    light: float = Field(0.12, ge=0, lt=1)
    grounds: float = Field(0.15, ge=0, le=1)
    swap: float = Field(0.0, ge=0, le=1)
    scored: bool = True

    @property
    def several(self) -> bool:
        """Whether a picture has other encodings than the plain one."""
        return self.count > 1 or self.swap > 0


def view(white_BCHW: Tensor, alpha_B1HW: Tensor, settings: ViewSettings, rng: Generator) -> Tensor:
    """Draw one view of each picture with `rng`.

    Args:
        white_BCHW: RGB over white, uint8.
        alpha_B1HW: their opacity, uint8.

    Returns:
        RGB, uint8, (B, 3, H, W), on the same device.
    """
    count, device = len(white_BCHW), white_BCHW.device

    def uniform(low: float, high: float, *more: int) -> Tensor:
        drawn = torch.rand(count, *more, generator=rng, dtype=torch.float64)
        return (low + (high - low) * drawn).float().to(device)

    angle_B = uniform(-1, 1) * math.radians(settings.turn)
    shrink_B, shift_B2 = 1 / uniform(*settings.scale), uniform(-2 * settings.shift, 2 * settings.shift, 2)
    cos_B, sin_B = angle_B.cos() * shrink_B, angle_B.sin() * shrink_B
    turn_B23 = torch.stack([cos_B, -sin_B, shift_B2[:, 0], sin_B, cos_B, shift_B2[:, 1]], 1).view(count, 2, 3)
    # Premultiplied alpha, so that colours of transparent pixels do not bleed in.
    opacity_B1HW = alpha_B1HW.float() / 255
    weighed_BCHW = torch.cat([(white_BCHW.float() / 255 - (1 - opacity_B1HW)).clamp_min(0), opacity_B1HW], 1)
    grid_BHW2 = affine_grid(turn_B23, list(weighed_BCHW.shape), align_corners=False)
    moved_BCHW = grid_sample(weighed_BCHW, grid_BHW2, mode="bicubic", align_corners=False).clamp(0, 1)
    colours_BCHW, opacity_B1HW = moved_BCHW[:, :3], moved_BCHW[:, 3:]
    low, high = 1 - settings.light, 1 + settings.light
    lights = (uniform(low, high)[:, None, None, None] for _ in range(3))
    coloured_B = uniform(0, 1) < settings.grounds
    ground_B3 = torch.where(coloured_B[:, None], uniform(0.55, 1, 3), torch.ones(count, 3, device=device))
    out_BCHW = _lit(colours_BCHW, opacity_B1HW, *lights) + ground_B3[:, :, None, None] * (1 - opacity_B1HW)
    return (out_BCHW.clamp(0, 1) * 255).round().to(torch.uint8)


def _lit(
    weighed_BCHW: Tensor, alpha_B1HW: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor
) -> Tensor:
    """Change brightness, contrast and saturation of premultiplied colours; factors are (B, 1, 1, 1)."""
    grey_B1HW, middle_B1HW = weighed_BCHW.mean(1, keepdim=True), 0.5 * alpha_B1HW
    x_BCHW = grey_B1HW + (weighed_BCHW - grey_B1HW) * saturation
    x_BCHW = (middle_B1HW + (x_BCHW - middle_B1HW) * contrast) * brightness
    return x_BCHW.clamp_min(0).minimum(alpha_B1HW)


def chosen(counts: Sequence[int], settings: ViewSettings, rng: Generator) -> list[tuple[int, float]]:
    """Draw the index of an encoding for each picture, given their numbers, and the share of codes to replace.

    The plain one as it is with probability `plain`, else any other, or with `swap` any at all.
    """
    draws = torch.rand((3 if settings.swap else 2) * len(counts), generator=rng, dtype=torch.float64).tolist()
    shares = draws[2 * len(counts) :]
    out: list[tuple[int, float]] = []
    for place, count in enumerate(counts):
        plain, which = draws[2 * place : 2 * place + 2]
        if plain < settings.plain or not (settings.swap or count > 1):
            out.append((0, 0.0))
        elif settings.swap:
            out.append((int(which * count), settings.swap * shares[place]))
        else:
            out.append((1 + int(which * (count - 1)), 0.0))
    return out


def nearest(codebook_KD: Tensor, count: int = 8) -> Tensor:
    """The codes (K, count) that are nearest to each code by Euclidean distance, itself left out."""
    table_KD = codebook_KD.detach().float().cpu()
    distances_KK = torch.cdist(table_KD, table_KD).fill_diagonal_(torch.inf)
    return distances_KK.topk(min(count, len(table_KD) - 1), largest=False).indices


def swapped(codes_L: Tensor, share: float, near_KN: Tensor, rng: Generator) -> Tensor:
    """Replace each code with probability `share` by one of its nearest."""
    odds_2L = torch.rand(2, len(codes_L), generator=rng, dtype=torch.float64)
    other_L = near_KN[codes_L].gather(1, (odds_2L[1] * near_KN.shape[1]).long()[:, None])[:, 0]
    return torch.where(odds_2L[0] < share, other_L, codes_L)
