"""Configuration of an image tokenizer: network, quantizer, pixels."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vq import residual as residual  # registers itself
from cm3kit_tokenizers.vq.quantizers import quantizers


class ImageTokenizerConfig(BaseModel):
    """Shape and conventions of an image tokenizer; these are the defaults of settings files.

    Args:
        channels: one entry per level; the grid is `resolution / 2^(levels − 1)` on each side.
        attention: in the middle of encoder and decoder.
        attention_levels: further levels (0 is that of pixels) whose blocks have attention.
        quantizer: a name of `cm3kit_tokenizers.vq.quantizers`.
        levels: values of each coordinate, for the quantizer `fsq`; vectors of each level, for `residual`.
        pixel_range: range of the network's input and output: `signed` is [−1, 1], `unit` is [0, 1].
        fit: conversion to a square: `pad` with the background, `crop` the middle, or `stretch`.
        resample: filter of the resizing.
        background: colour behind transparent parts and in padding, 0–255.
        origin: of converted weights: family, and SHA-256 of each file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    resolution: int = Field(64, ge=8, le=1024)
    channels: tuple[int, ...] = Field((32, 64, 128, 128), min_length=1, max_length=8)
    layers_per_block: int = Field(1, ge=1, le=4)
    codes: int = Field(2048, ge=2, le=2**18)
    code_dim: int = Field(16, ge=1, le=1024)
    latent_channels: int = Field(32, ge=1, le=1024)
    norm_groups: int = Field(16, ge=1)
    attention: bool = True
    attention_levels: tuple[int, ...] = ()
    quantizer: str = "vq"
    levels: tuple[int, ...] = ()
    pixel_range: Literal["signed", "unit"] = "signed"
    fit: Literal["pad", "crop", "stretch"] = "pad"
    resample: Literal["lanczos", "bicubic", "bilinear", "box"] = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)
    origin: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _divides(self) -> ImageTokenizerConfig:
        if any(each < 1 or each % self.norm_groups for each in self.channels):
            raise ValueError(f"channels must be multiples of norm_groups = {self.norm_groups}")
        if self.resolution % 2 ** (len(self.channels) - 1):
            raise ValueError("resolution must be divisible by 2 at every level of channels but the last")
        if any(not 0 <= level < len(self.channels) for level in self.attention_levels):
            raise ValueError(f"attention_levels must be in 0..{len(self.channels) - 1}")
        if any(not 0 <= each <= 255 for each in self.background):
            raise ValueError("background must be three numbers in 0..255")
        try:
            rule = quantizers[self.quantizer]
        except ConfigError as error:
            raise ValueError(error.args[0]) from None
        rule.check(self.codes, self.code_dim, self.levels)
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        side = self.resolution // 2 ** (len(self.channels) - 1)
        return side, side
