"""Pictures to codes and back on the network of diffusers' `VQModel`, quantised in fp32.

The network equals taming-transformers' VQGAN (arXiv:2012.09841); a saved folder opens in diffusers.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vq.quantize import nearest

FILE = "tokenizer_config.json"


class ImageTokenizerConfig(BaseModel):
    """Shape of an image tokenizer.

    `channels` has one entry a level; the grid is `resolution / 2^(levels − 1)` on each side.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    resolution: int = Field(64, ge=8, le=1024)
    channels: tuple[int, ...] = Field((32, 64, 128, 128), min_length=1, max_length=8)
    layers_per_block: int = Field(1, ge=1, le=4)
    codes: int = Field(2048, ge=2, le=65536)
    code_dim: int = Field(16, ge=1, le=1024)
    latent_channels: int = Field(32, ge=1, le=1024)
    norm_groups: int = Field(16, ge=1)
    attention: bool = True

    @model_validator(mode="after")
    def _divides(self) -> ImageTokenizerConfig:
        if any(each < 1 or each % self.norm_groups for each in self.channels):
            raise ValueError(f"channels must be multiples of norm_groups = {self.norm_groups}")
        if self.resolution % 2 ** (len(self.channels) - 1):
            raise ValueError("resolution must halve without rest at every level of channels but the last")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        side = self.resolution // 2 ** (len(self.channels) - 1)
        return side, side


def build_network(config: ImageTokenizerConfig) -> VQModel:
    """A fresh diffusers `VQModel`."""
    levels = len(config.channels)
    return VQModel(
        block_out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        vq_embed_dim=config.code_dim,
        num_vq_embeddings=config.codes,
        norm_num_groups=config.norm_groups,
        sample_size=config.resolution,
        mid_block_add_attention=config.attention,
        lookup_from_codebook=True,
    )


class ImageTokenizer(nn.Module):
    """A picture ↔ a grid of codes.

    Pixels are uint8 tensors `pixels_BCHW` (RGB, 0–255) outside, and [−1, 1] inside the network.
    """

    def __init__(self, config: ImageTokenizerConfig, network: VQModel | None = None) -> None:
        super().__init__()
        self.config = config
        self.network: Any = network if network is not None else build_network(config)

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.config.codes

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.config.grid

    @property
    def codebook_KD(self) -> nn.Parameter:
        """The codes' vectors."""
        weight: nn.Parameter = self.network.quantize.embedding.weight
        return weight

    @property
    def sha256(self) -> str:
        """Of everything that decides which codes a picture gets: another decoder changes nothing."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for name, each in sorted(self.network.state_dict().items()):
            if name.startswith(("encoder.", "quant_conv.", "quantize.")):
                digest.update(f"{name}{tuple(each.shape)}".encode())
                digest.update(each.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def latents(self, x_BCHW: Tensor) -> Tensor:
        """Vectors before quantisation, `(B, code_dim, h, w)`, of pixels in [−1, 1]."""
        latents_BDHW: Tensor = self.network.quant_conv(self.network.encoder(x_BCHW))
        return latents_BDHW

    def render(self, vectors_BDHW: Tensor) -> Tensor:
        """Pixels in about [−1, 1] of quantised vectors."""
        x_BCHW: Tensor = self.network.decoder(self.network.post_quant_conv(vectors_BDHW))
        return x_BCHW

    @torch.inference_mode()
    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Codes of uint8 pixels at the tokenizer's resolution: `codes_BN`, row by row."""
        latents_BDHW = self.latents(to_signed(pixels_BCHW)).float()
        B, D, H, W = latents_BDHW.shape
        codes_N = nearest(latents_BDHW.permute(0, 2, 3, 1).reshape(-1, D), self.codebook_KD)
        return codes_N.view(B, H * W)

    @torch.inference_mode()
    def decode(self, codes_BN: Tensor) -> Tensor:
        """uint8 pixels of codes: `pixels_BCHW`."""
        height, width = self.grid
        vectors_BHWD = self.codebook_KD[codes_BN].view(len(codes_BN), height, width, -1)
        return to_uint8(self.render(vectors_BHWD.permute(0, 3, 1, 2).contiguous()))

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures padded to a square on white and resized: `pixels_BCHW` uint8."""
        return torch.stack([_square(picture, self.config.resolution) for picture in pictures])

    def save(self, folder: Path, half: bool = False) -> None:
        """Write config.json + safetensors (a diffusers folder) and the tokenizer's own settings."""
        network = copy.deepcopy(self.network).half() if half else self.network
        network.save_pretrained(folder, safe_serialization=True)
        (folder / FILE).write_text(self.config.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ImageTokenizer:
        """Open a saved folder; ModelError names what is missing, extra or mis-shaped."""
        from cm3kit_tokenizers.weights import load_exactly

        try:
            config = ImageTokenizerConfig.model_validate(json.loads((folder / FILE).read_text()))
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder / FILE}: {_line(error)}.", code="bad_checkpoint") from error
        with torch.random.fork_rng(devices=[]):  # the weights are about to be replaced
            tokenizer = cls(config)
        load_exactly(tokenizer.network, folder / "diffusion_pytorch_model.safetensors")
        return tokenizer.eval()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def to_signed(pixels_BCHW: Tensor) -> Tensor:
    """uint8 pixels → [−1, 1] floats."""
    return pixels_BCHW.float() / 127.5 - 1


def to_uint8(x_BCHW: Tensor) -> Tensor:
    """[−1, 1] floats → uint8 pixels."""
    return ((x_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_picture(pixels_CHW: Tensor) -> Image.Image:
    """One uint8 picture as a Pillow image."""
    return Image.fromarray(pixels_CHW.permute(1, 2, 0).contiguous().cpu().numpy())


def _square(picture: Image.Image, size: int) -> Tensor:
    side = max(picture.size)
    if picture.size != (side, side):
        square = Image.new("RGB", (side, side), "white")
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    if side != size:
        picture = picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
