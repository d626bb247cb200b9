"""What `train vqgan` trains: an image tokenizer that reconstructs pictures through a discrete bottleneck."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from cm3kit.config import Settings
from cm3kit.data.pictures import PictureSet, load_pictures
from cm3kit.pipelines.outputs import grid
from cm3kit.training.loop import LoopSettings
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vq.losses import laplacian, psnr, ssim
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig, to_picture, to_signed, to_uint8
from cm3kit_tokenizers.vq.quantize import Codebook


class LossWeights(Settings):
    """Weights of the reconstruction terms and of the commitment term (β).

    `log_l2` weighs the mean logarithm of each picture's squared error, which is its PSNR but for a factor:
    where `l2` is ruled by the worst pictures, every picture counts the same here.
    """

    l1: float = Field(1.0, ge=0)
    l2: float = Field(4.0, ge=0)
    log_l2: float = Field(0.0, ge=0)
    laplacian: float = Field(0.5, ge=0)
    ssim: float = Field(0.1, ge=0)
    commitment: float = Field(0.25, ge=0)


class CodebookSettings(Settings):
    """How codes move. They start from data after `start` steps of training without quantisation."""

    start: int = Field(100, ge=1)
    decay: float = Field(0.99, gt=0, lt=1)
    restart_below: float = Field(0.05, ge=0)
    rotation: bool = True


class VqganRecipe(Settings):
    """Everything that `train vqgan` needs.

    `data` is a corpus folder (or any folder of pictures); `shift` is the largest random shift in
    pixels, less than the tokenizer's resolution; `start_from` is a saved tokenizer to go on from;
    `freeze_codes` keeps its encoder and codes as they are, so that ids stay valid, and trains the
    decoder alone.
    """

    data: Path = Path("data/emoji")
    tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    loss: LossWeights = LossWeights()
    codebook: CodebookSettings = CodebookSettings()
    loop: LoopSettings = LoopSettings()
    shift: int = Field(3, ge=0)
    flip: bool = True
    start_from: Path | None = None
    freeze_codes: bool = False


class Autoencoder(nn.Module):
    """Tokenizer network and moving codebook as one module."""

    def __init__(self, tokenizer: ImageTokenizer, settings: CodebookSettings) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.codebook = Codebook(
            tokenizer.codebook_KD, settings.decay, settings.restart_below, settings.rotation
        )

    def forward(self, x_BCHW: Tensor, quantise: bool, rng: Generator | None) -> tuple[Tensor, Tensor]:
        """Pixels in [−1, 1] → reconstruction, commitment."""
        z_BDHW = self.tokenizer.latents(x_BCHW).float()
        if not quantise:
            return self.tokenizer.render(z_BDHW), z_BDHW.new_zeros(())
        quantised = self.codebook(z_BDHW, rng)
        return self.tokenizer.render(quantised.vectors_BCHW), quantised.commitment


class VqganTask:
    """Reconstruct pictures; implements `cm3kit.training.loop.Task`."""

    model: Autoencoder

    def __init__(self, recipe: VqganRecipe) -> None:
        self.recipe = recipe
        if recipe.start_from is not None:
            tokenizer = ImageTokenizer.load(recipe.start_from)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(recipe.loop.seed)
                tokenizer = ImageTokenizer(recipe.tokenizer)
        if recipe.shift >= tokenizer.config.resolution:
            raise ConfigError(
                f"shift = {recipe.shift}: it moves whole pictures out of sight;"
                f" less than the resolution, {tokenizer.config.resolution}.",
                code="bad_config",
            )
        self.model = Autoencoder(tokenizer, recipe.codebook).train()
        if recipe.start_from is not None:
            self.model.codebook.started.fill_(True)
            self.model.codebook.sums_KD.copy_(tokenizer.codebook_KD)
        if recipe.freeze_codes:
            for part in (tokenizer.network.encoder, tokenizer.network.quant_conv):
                part.requires_grad_(False)
        self.pictures: PictureSet = load_pictures(recipe.data, tokenizer)

    def batch(self, rng: Generator, size: int) -> Tensor:
        """uint8 `pixels_BCHW`, shifted and flipped at random."""
        pixels_BCHW = self.pictures.draw(rng, size)
        shift = self.recipe.shift
        if shift:
            offsets = torch.randint(-shift, shift + 1, (size, 2), generator=rng).tolist()
            pixels_BCHW = torch.stack(
                [_shift(each, *by) for each, by in zip(pixels_BCHW, offsets, strict=True)]
            )
        if self.recipe.flip:
            flip_B = torch.rand(size, generator=rng) < 0.5
            pixels_BCHW = torch.where(flip_B[:, None, None, None], pixels_BCHW.flip(3), pixels_BCHW)
        return pixels_BCHW

    def loss(
        self, model: nn.Module, batch: Tensor, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted reconstruction terms plus commitment; starts the codebook from data when it is time."""
        weights, device = self.recipe.loss, next(model.parameters()).device
        x_BCHW = to_signed(batch.to(device))
        started = bool(self.model.codebook.started)
        moving = rng if not self.recipe.freeze_codes else None
        y_BCHW, commitment = model(x_BCHW, started, moving)
        if not started and step + 1 >= self.recipe.codebook.start:
            self._start_codes(len(batch), rng)
        with torch.autocast(x_BCHW.device.type, enabled=False):
            y_BCHW = y_BCHW.float()
            l2_B = (y_BCHW - x_BCHW).square().mean(dim=(1, 2, 3))
            l2 = l2_B.mean()
            total = weights.l1 * F.l1_loss(y_BCHW, x_BCHW) + weights.l2 * l2
            total = total + weights.log_l2 * l2_B.clamp_min(1e-5).log().mean()
            total = total + weights.laplacian * laplacian(y_BCHW, x_BCHW)
            total = total + weights.ssim * (1 - ssim(y_BCHW, x_BCHW)) + weights.commitment * commitment
        used = (self.model.codebook.counts_K > 0.01).float().mean()
        figures = {"psnr": float(10 * torch.log10(4 / l2.detach())), "used": float(used)}
        return total, figures

    @torch.no_grad()
    def _start_codes(self, size: int, rng: Generator, batches: int = 40) -> None:
        """Place the codes on vectors of fresh batches, so that a resumed run places them in the same way."""
        tokenizer = self.model.tokenizer
        found: list[Tensor] = []
        for _ in range(batches):
            x_BCHW = to_signed(self.batch(rng, size).to(tokenizer.codebook_KD.device))
            z_BDHW = tokenizer.latents(x_BCHW).float()
            found.append(z_BDHW.permute(0, 2, 3, 1).reshape(-1, z_BDHW.shape[1]))
        self.model.codebook.start(torch.cat(found), rng)

    def preview(self, model: nn.Module, path: Path) -> None:
        """Held-out pictures above their reconstructions."""
        pixels_BCHW = self.pictures.held_out(24)
        again_BCHW = self._reconstruct(pixels_BCHW)
        tiles = [to_picture(each) for pair in zip(pixels_BCHW, again_BCHW, strict=True) for each in pair]
        grid(tiles, columns=12).save(path.with_suffix(".png"))

    def _reconstruct(self, pixels_BCHW: Tensor) -> Tensor:
        tokenizer = self.model.tokenizer
        if bool(self.model.codebook.started):
            return tokenizer.decode(tokenizer.encode(pixels_BCHW))
        with torch.inference_mode():
            return to_uint8(tokenizer.render(tokenizer.latents(to_signed(pixels_BCHW))))

    def export(self, model: nn.Module, folder: Path) -> None:
        """The tokenizer in half precision."""
        self.model.tokenizer.save(folder, half=True)

    def evaluate(self, batch: int = 64) -> dict[str, Any]:
        """Mean PSNR of held-out pictures and share of codes in use over all pictures."""
        held = self.pictures.held_out(None)
        scores = [psnr(each, self._reconstruct(each)) for each in torch.split(held, batch)]
        codes = [self.model.tokenizer.encode(each) for each in torch.split(self.pictures.pixels_BCHW, batch)]
        used = torch.unique(torch.cat(codes)).numel() / self.model.tokenizer.size
        return {"psnr": float(torch.cat(scores).mean()), "used": used}


def _shift(pixels_CHW: Tensor, down: int, right: int) -> Tensor:
    """Move a picture over white."""
    out_CHW = torch.full_like(pixels_CHW, 255)
    height, width = pixels_CHW.shape[1:]
    rows, columns = slice(max(0, down), height + min(0, down)), slice(max(0, right), width + min(0, right))
    from_rows, from_columns = (
        slice(max(0, -down), height - max(0, down)),
        slice(max(0, -right), width - max(0, right)),
    )
    out_CHW[:, rows, columns] = pixels_CHW[:, from_rows, from_columns]
    return out_CHW
