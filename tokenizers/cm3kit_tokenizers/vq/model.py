"""Pictures to codes and back with the network of diffusers' `VQModel` (`vq.network`), quantised in fp32.

The network equals taming-transformers' VQGAN (arXiv:2012.09841); a saved folder opens in diffusers, which is imported
where one is saved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vq.config import ImageTokenizerConfig as ImageTokenizerConfig
from cm3kit_tokenizers.vq.network import VqNetwork
from cm3kit_tokenizers.vq.pixels import fit
from cm3kit_tokenizers.vq.pixels import to_picture as to_picture
from cm3kit_tokenizers.vq.pixels import to_signed as to_signed
from cm3kit_tokenizers.vq.pixels import to_uint8 as to_uint8
from cm3kit_tokenizers.vq.quantizers import Quantizer, quantizers

if TYPE_CHECKING:
    from diffusers import VQModel

FILE = "tokenizer_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
OWN = "quantizer.safetensors"


class ImageTokenizer(nn.Module):
    """A picture ↔ a grid of codes.

    Pixels are uint8 tensors `pixels_BCHW` (RGB, 0–255) in the interface, and in [−1, 1] in the network.
    """

    draws = True  # whether codes can be made pictures again

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.network: Any = VqNetwork(config)
        self.quantizer: Quantizer = quantizers[config.quantizer](config.codes, config.code_dim, config.levels)
        self.quantizer.settle(self.codebook_KD)

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
        """Hash of everything that determines the codes of a picture, independent of decoder and origin."""
        # Settings at their defaults are not hashed, so that adding a setting does not change existing hashes.
        settings = self.config.model_dump_json(exclude={"origin"}, exclude_defaults=True)
        return self._digest(settings, drawing=False)

    @property
    def decoder_sha256(self) -> str:
        """Hash of the decoder's weights, which are not in `sha256`; codes from a search depend on them."""
        return self._digest("", drawing=True)

    def _digest(self, settings: str, drawing: bool) -> str:
        digest = hashlib.sha256(settings.encode())
        for name, each in sorted(self.state_dict().items()):
            if name.startswith(("network.decoder.", "network.post_quant_conv.")) == drawing:
                digest.update(f"{name} {tuple(each.shape)} {each.dtype}".encode())
                digest.update(each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def latents(self, x_BCHW: Tensor) -> Tensor:
        """Vectors before quantisation, `(B, code_dim, h, w)`, from pixels in [−1, 1]."""
        if self.config.pixel_range == "unit":
            x_BCHW = (x_BCHW + 1) / 2
        latents_BDHW: Tensor = self.network.quant_conv(self.network.encoder(x_BCHW.to(self._dtype)))
        return latents_BDHW

    def render(self, vectors_BDHW: Tensor) -> Tensor:
        """Decode quantised vectors to pixels in about [−1, 1]."""
        x_BCHW: Tensor = self.network.decoder(self.network.post_quant_conv(vectors_BDHW.to(self._dtype)))
        return x_BCHW * 2 - 1 if self.config.pixel_range == "unit" else x_BCHW

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.network.encoder.conv_in.weight.dtype
        return dtype

    @torch.inference_mode()
    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Codes of uint8 pixels at the tokenizer's resolution: `codes_BN`, row by row, on the device of the weights."""
        latents_BDHW = self.latents(to_signed(pixels_BCHW.to(self.codebook_KD.device))).float()
        B, D, H, W = latents_BDHW.shape
        codes_N = self.quantizer.codes(latents_BDHW.permute(0, 2, 3, 1).reshape(-1, D), self.codebook_KD)
        return codes_N.view(B, H * W)

    @torch.inference_mode()
    def decode(self, codes_BN: Tensor) -> Tensor:
        """uint8 pixels of codes: `pixels_BCHW`, on the device of the weights."""
        height, width = self.grid
        vectors_BHWD = self.codebook_KD[codes_BN.to(self.codebook_KD.device)].view(
            len(codes_BN), height, width, -1
        )
        return to_uint8(self.render(vectors_BHWD.permute(0, 3, 1, 2).contiguous()))

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures at the tokenizer's size, by its rules for shape and transparency: `pixels_BCHW` uint8."""
        return torch.stack([fit(picture, self.config) for picture in pictures])

    def lower(self, dtype: torch.dtype) -> ImageTokenizer:
        """Switch the computation to `dtype`; codebook and choice of codes stay in fp32. Returns itself."""
        for part in ("encoder", "quant_conv", "post_quant_conv", "decoder"):
            getattr(self.network, part).to(dtype)
        return self

    def channels_last(self) -> ImageTokenizer:
        """Store weights in channels-last order, which is faster on CPUs; not for training. Returns itself."""
        self.network.to(memory_format=torch.channels_last)
        return self

    def as_diffusers(self) -> VQModel:
        """A copy of the network as diffusers' own class, with what its `config.json` says."""
        from diffusers import VQModel

        config = self.config
        attends = [level in config.attention_levels for level in range(len(config.channels))]
        down = ["AttnDownEncoderBlock2D" if each else "DownEncoderBlock2D" for each in attends]
        up = ["AttnUpDecoderBlock2D" if each else "UpDecoderBlock2D" for each in attends[::-1]]
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
            made = VQModel(
                block_out_channels=config.channels,
                down_block_types=tuple(down),
                up_block_types=tuple(up),
                layers_per_block=config.layers_per_block,
                latent_channels=config.latent_channels,
                vq_embed_dim=config.code_dim,
                num_vq_embeddings=config.codes,
                norm_num_groups=config.norm_groups,
                sample_size=config.resolution,
                mid_block_add_attention=config.attention,
                lookup_from_codebook=True,
            )
        state = {name: each.detach().clone() for name, each in self.network.state_dict().items()}
        made.load_state_dict(state, assign=True)
        return made.train(self.training)

    def save(self, folder: Path, half: bool = False) -> None:
        """Write config.json + safetensors (a diffusers folder) and the tokenizer's own settings."""
        self.quantizer.settle(self.codebook_KD)
        network = self.as_diffusers()
        (network.half() if half else network).save_pretrained(folder, safe_serialization=True)
        if own := self.quantizer.state_dict():
            save_file({name: each.contiguous() for name, each in own.items()}, folder / OWN)
        (folder / FILE).write_text(self.config.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ImageTokenizer:
        """Load a saved folder; ModelError lists missing, extra and mis-shaped tensors."""
        from cm3kit_tokenizers.weights import hold_sizes, load_exactly

        if not (folder / FILE).is_file() and (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} has no {FILE}; convert it first: cm3kit model convert {folder} -o FOLDER.",
                code="bad_checkpoint",
            )
        try:
            config = ImageTokenizerConfig.model_validate(json.loads((folder / FILE).read_text()))
        except (OSError, RecursionError, ValueError) as error:
            raise ModelError(f"{folder / FILE}: {_line(error)}.", code="bad_checkpoint") from error
        widths = {"channels": max(config.channels), "latent_channels": config.latent_channels}
        hold_sizes(folder / FILE, widths, {}, [folder / WEIGHTS])
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
            tokenizer = cls(config)
        load_exactly(tokenizer.network, folder / WEIGHTS)
        if tokenizer.quantizer.state_dict():
            load_exactly(tokenizer.quantizer, folder / OWN)
        return tokenizer.eval()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
