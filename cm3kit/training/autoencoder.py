"""An image tokenizer in training: its network, its codebook updates, and the discriminator if it has one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from cm3kit.config import Settings
from cm3kit.training.adversary import Adversary, AdversarySettings, Verdict
from cm3kit_tokenizers.vq.model import ImageTokenizer
from cm3kit_tokenizers.vq.quantize import Codebook
from cm3kit_tokenizers.vq.quantizers import entropy_term


class CodebookSettings(Settings):
    """How codes are updated. They are initialised from data after `start` steps of training without quantisation.

    `gradient` lets the codes of `vq`, `vq_l2` and `rotation` learn by gradient instead of by moving average.
    """

    start: int = Field(100, ge=1)
    decay: float = Field(0.99, gt=0, lt=1)
    restart_below: float = Field(0.05, ge=0)
    rotation: bool = True
    gradient: bool = False


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A reconstruction in about [−1, 1] and what the bottleneck costs; scalars are zero where there is none."""

    y_BCHW: Tensor
    commitment: Tensor
    moved: Tensor
    entropy: Tensor
    verdict: Verdict | None = None


class Autoencoder(nn.Module):
    """Everything that is trained, as one module, so that one call and one checkpoint serve it all."""

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        settings: CodebookSettings,
        adversary: AdversarySettings | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.codebook = Codebook(
            tokenizer.codebook_KD, settings.decay, settings.restart_below, settings.rotation,
            tokenizer.quantizer, settings.gradient,
        )  # fmt: skip
        self.adversary = Adversary(adversary) if adversary is not None and adversary.weight > 0 else None

    def forward(
        self, x_BCHW: Tensor, quantise: bool, rng: Generator | None, *, temperature: float | None = None,
        judged: bool = False, heard: bool = False,
    ) -> Rebuilt:  # fmt: skip
        """Reconstruct pixels in [−1, 1].

        Args:
            quantise: False passes vectors on as they are, before codes have started.
            rng: for restarts and samples; codes move only with it.
            temperature: of the entropy term, which is computed if it is given.
            judged: let the discriminator look.
            heard: whether its loss counts for the decoder.
        """
        z_BDHW = self.tokenizer.latents(x_BCHW).float()
        zero = z_BDHW.new_zeros(())
        if not quantise:
            rebuilt = Rebuilt(self.tokenizer.render(z_BDHW), zero, zero, zero)
        else:
            quantised = self.codebook(z_BDHW, rng)
            entropy = zero
            if temperature is not None:
                vectors_ND = z_BDHW.permute(0, 2, 3, 1).reshape(-1, z_BDHW.shape[1])
                codebook = self.tokenizer.codebook_KD
                with torch.autocast(z_BDHW.device.type, enabled=False):
                    entropy = entropy_term(self.tokenizer.quantizer.scores(vectors_ND, codebook), temperature)
            y_BCHW = self.tokenizer.render(quantised.vectors_BCHW)
            rebuilt = Rebuilt(y_BCHW, quantised.commitment, quantised.moved, entropy)
        if self.adversary is None or not judged:
            return rebuilt
        verdict = self.adversary(x_BCHW, rebuilt.y_BCHW, heard)
        return Rebuilt(rebuilt.y_BCHW, rebuilt.commitment, rebuilt.moved, rebuilt.entropy, verdict)
