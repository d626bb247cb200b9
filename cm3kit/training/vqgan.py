"""What `train vqgan` trains: an image tokenizer that reconstructs pictures through a discrete bottleneck."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cm3kit.config import Settings
from cm3kit.data.pictures import PictureSet, load_pictures
from cm3kit.images import grid
from cm3kit.training.adversary import AdversarySettings, Verdict, balance
from cm3kit.training.autoencoder import Autoencoder, Rebuilt
from cm3kit.training.autoencoder import CodebookSettings as CodebookSettings
from cm3kit.training.loop import LoopSettings
from cm3kit.training.reconstruct import LossWeights, Reconstruction
from cm3kit.training.task import Part
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vq.losses import psnr
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig, to_picture, to_signed


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
    adversary: AdversarySettings = AdversarySettings()
    loop: LoopSettings = LoopSettings()
    shift: int = Field(3, ge=0)
    flip: bool = True
    start_from: Path | None = None
    freeze_codes: bool = False


class VqganTask:
    """Reconstruct pictures; implements `cm3kit.training.loop.Task`."""

    model: Autoencoder

    def __init__(self, recipe: VqganRecipe) -> None:
        self.recipe = recipe
        self._flops: float | None = None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(recipe.loop.seed)
            if recipe.start_from is not None:
                tokenizer = ImageTokenizer.load(recipe.start_from)
            else:
                tokenizer = ImageTokenizer(recipe.tokenizer)
            model = Autoencoder(tokenizer, recipe.codebook, recipe.adversary)
        if recipe.shift >= tokenizer.config.resolution:
            raise ConfigError(
                f"shift = {recipe.shift}: it moves whole pictures out of sight;"
                f" less than the resolution, {tokenizer.config.resolution}.",
                code="bad_config",
            )
        self.model, self.reconstruction = model.train(), Reconstruction(recipe.loss)
        if not self._started and recipe.start_from is None and recipe.codebook.start >= recipe.loop.steps:
            raise ConfigError(
                f"codebook.start = {recipe.codebook.start}: training ends at loop.steps = {recipe.loop.steps}, before"
                " there is a code; start earlier, or train longer.",
                code="bad_config",
            )
        if recipe.start_from is not None:
            self.model.codebook.started.fill_(True)
            self.model.codebook.sums_KD.copy_(tokenizer.codebook_KD)
        if recipe.freeze_codes:
            for part in (tokenizer.network.encoder, tokenizer.network.quant_conv):
                part.requires_grad_(False)
            tokenizer.quantizer.requires_grad_(False)
            tokenizer.codebook_KD.requires_grad_(False)
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

    def names(self, rng: Generator, size: int) -> list[str]:
        """The pictures that `batch` draws."""
        return [self.pictures.names[each] for each in self.pictures.pick(rng, size).tolist()]

    def fingerprint(self) -> str:
        """Of the pictures."""
        return self.pictures.fingerprint()

    def loss(
        self, model: nn.Module, batch: Tensor, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted terms of reconstruction, codes and discriminator; starts the codes from data when it is time."""
        weights, adversary, device = self.recipe.loss, self.recipe.adversary, next(model.parameters()).device
        x_BCHW = to_signed(batch.to(device))
        done = step / self.recipe.loop.steps
        heard = adversary.heard(done)
        started = self._started
        moving = rng if not self.recipe.freeze_codes else None
        found: Rebuilt = model(
            x_BCHW, started, moving, temperature=weights.temperature if weights.entropy else None,
            judged=adversary.trains(done), heard=heard > 0,
        )  # fmt: skip
        if not started and step + 1 >= self.recipe.codebook.start:
            self._start_codes(self.recipe.loop.batch_size, rng)
        with torch.autocast(device.type, enabled=False):
            total, figures = self.reconstruction.to(device)(x_BCHW, found.y_BCHW)
            judged, opinions = self._judged(total, found.verdict, heard)
            total = total + weights.bottleneck(found.commitment, found.moved) + judged
            total = total + weights.entropy * found.entropy
        figures |= self.model.codebook.usage() if self._started else {}
        figures |= opinions | {"commitment": float(found.commitment.detach())}
        return total, figures | ({"entropy": float(found.entropy.detach())} if weights.entropy else {})

    @property
    def _started(self) -> bool:
        """Whether there are codes, so that pictures go through them."""
        return bool(self.model.codebook.started)

    def _need_codes(self, what: str) -> None:
        """Refuse what would look better than it is: without codes, pictures pass through as they are."""
        if not self._started:
            raise ConfigError(
                f"{what} before the codes have started (codebook.start = {self.recipe.codebook.start}): nothing has"
                " been through a code yet.",
                code="bad_value",
            )

    def _judged(
        self, reconstruction: Tensor, verdict: Verdict | None, heard: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The discriminator's own loss, and the decoder's share of it."""
        settings, adversary = self.recipe.adversary, self.model.adversary
        if verdict is None or adversary is None:
            return reconstruction.new_zeros(()), {}
        total = own = adversary.own_loss(verdict, settings.lecam)
        weight = torch.tensor(heard)
        if verdict.heard is not None:
            opinion = -verdict.heard.mean()
            if settings.adaptive:
                last = self.model.tokenizer.network.decoder.conv_out.weight
                weight = heard * balance(reconstruction, opinion, last, settings.most)
            total = total + weight * opinion
        real, fake = verdict.real.detach().mean(), verdict.fake.detach().mean()
        figures = {"d_loss": own.detach(), "d_real": real, "d_fake": fake, "g_weight": weight}
        return total, {name: float(each) for name, each in figures.items()}

    def parts(self) -> list[Part]:
        """The autoencoder, and the discriminator at a rate of its own."""
        adversary, settings = self.model.adversary, self.recipe.adversary
        judge = list(adversary.parameters()) if adversary is not None else []
        own = {id(each) for each in judge}
        ours = [each for each in self.model.parameters() if each.requires_grad and id(each) not in own]
        return [Part(ours), *([Part(judge, settings.rate, settings.betas)] if judge else [])]

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
        """Held-out pictures above their reconstructions; ConfigError before there are codes."""
        self._need_codes("a preview")
        pixels_BCHW = self.pictures.held_out(24)
        again_BCHW = self._reconstruct(pixels_BCHW)
        tiles = [to_picture(each) for pair in zip(pixels_BCHW, again_BCHW, strict=True) for each in pair]
        grid(tiles, columns=12, least=64).save(path.with_suffix(".png"))

    def _reconstruct(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels again, computed where the weights are, on the device of those given."""
        tokenizer = self.model.tokenizer
        tokenizer.quantizer.settle(tokenizer.codebook_KD)
        device = tokenizer.codebook_KD.device
        parts = (
            tokenizer.decode(tokenizer.encode(each.to(device))).to(each.device)
            for each in torch.split(pixels_BCHW, self._at_once)
        )
        return torch.cat([*parts])

    @property
    def _at_once(self) -> int:
        """Pictures of a pass, in a training step and elsewhere: no more memory is needed than for training."""
        return -(-self.recipe.loop.batch_size // self.recipe.loop.accumulate)

    def export(self, model: nn.Module, folder: Path) -> None:
        """The tokenizer in half precision; ConfigError before there are codes."""
        self._need_codes("an export")
        self.model.tokenizer.save(folder, half=True)

    @torch.no_grad()
    def work(self, rows: int) -> tuple[int, float]:
        """Codes of pictures, and FLOPs of a step on them: three times those of a reconstruction."""
        if self._flops is None:
            tokenizer = self.model.tokenizer
            x_BCHW = to_signed(self.pictures.held_out(1).to(tokenizer.codebook_KD.device))
            with FlopCounterMode(display=False) as counter:
                tokenizer.render(tokenizer.latents(x_BCHW))
            self._flops = 3.0 * counter.get_total_flops()
        rows_of_codes, columns = self.model.tokenizer.grid
        return rows * rows_of_codes * columns, rows * self._flops

    def validate(self, model: nn.Module, count: int) -> dict[str, float]:
        """Mean PSNR of `count` held-out pictures, in dB; none before there are codes."""
        if not self._started:
            return {}
        held_BCHW = self.pictures.held_out(count)
        return {"psnr": float(psnr(held_BCHW, self._reconstruct(held_BCHW)).mean())}


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
