"""Conversions of pictures, uint8 tensors and the networks' floats."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cm3kit_tokenizers.vq.config import ImageTokenizerConfig


def to_signed(pixels_BCHW: Tensor) -> Tensor:
    """uint8 pixels → [−1, 1] floats."""
    return pixels_BCHW.float() / 127.5 - 1


def to_uint8(x_BCHW: Tensor) -> Tensor:
    """[−1, 1] floats → uint8 pixels."""
    return ((x_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_picture(pixels_CHW: Tensor) -> Image.Image:
    """One uint8 picture as a Pillow image."""
    return Image.fromarray(pixels_CHW.permute(1, 2, 0).contiguous().cpu().numpy())


def fit(picture: Image.Image, config: ImageTokenizerConfig) -> Tensor:
    """A picture at the tokenizer's size, by its rules: `pixels_CHW` uint8."""
    if picture.has_transparency_data:
        front = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", front.size, (*config.background, 255)), front)
    size, sides = config.resolution, set(picture.size)
    if config.fit == "crop":
        side = min(sides)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side)) if len(sides) > 1 else picture
    elif config.fit == "pad" and len(sides) > 1:
        side = max(sides)
        square = Image.new("RGB", (side, side), config.background)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    if picture.size != (size, size):
        resample = Image.Resampling[config.resample.upper()]
        picture = picture.convert("RGB").resize((size, size), resample)
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
