"""The adversary of an image tokenizer: a discriminator that is trained before its loss counts.

What makes such training fail is a discriminator whose first opinions count at once, and a weight that has no bound.
So it is trained from `train_from` on, is heard from `start` on, and reaches its full weight over `ramp`. Its term has
a fixed weight, or one that balances its gradient at the decoder's last layer (arXiv:2012.09841, eq. 7), up to `most`.
LeCam's term (arXiv:2104.03310) keeps its logits near their moving averages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from cm3kit.config import Settings
from cm3kit_tokenizers.vq.discriminator import Norm, PatchDiscriminator


class AdversarySettings(Settings):
    """Off unless `weight` is above 0. `train_from`, `start` and `ramp` are shares of the steps."""

    weight: float = Field(0.0, ge=0)
    train_from: float = Field(0.0, ge=0, le=1)
    start: float = Field(0.3, ge=0, le=1)
    ramp: float = Field(0.1, ge=0, le=1)
    adaptive: bool = False
    most: float = Field(10.0, gt=0)
    lecam: float = Field(0.001, ge=0)
    channels: int = Field(64, ge=1)
    layers: int = Field(3, ge=1, le=6)
    norm: Norm = "group"
    rate: float = Field(1.0, gt=0)
    betas: tuple[float, float] = (0.5, 0.9)

    def trains(self, done: float) -> bool:
        """Whether the discriminator is trained after a share `done` of the steps."""
        return self.weight > 0 and done >= self.train_from

    def heard(self, done: float) -> float:
        """Weight of its loss then, before balancing."""
        if not self.trains(done) or done < self.start:
            return 0.0
        return self.weight * min(1.0, (done - self.start) / self.ramp) if self.ramp > 0 else self.weight


@dataclass(frozen=True, slots=True)
class Verdict:
    """Logits of real patches, of reconstructions (for the discriminator), and of the same for the decoder."""

    real: Tensor
    fake: Tensor
    heard: Tensor | None


class Adversary(nn.Module):
    """The discriminator with the moving averages of its logits."""

    averages_2: Tensor

    def __init__(self, settings: AdversarySettings) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator(settings.channels, settings.layers, settings.norm)
        self.register_buffer("averages_2", torch.zeros(2))

    def forward(self, x_BCHW: Tensor, y_BCHW: Tensor, heard: bool) -> Verdict:
        """Judge real pixels and reconstructions, both in [−1, 1].

        One backward pass serves both sides: the discriminator sees detached reconstructions, and the decoder a
        discriminator with detached weights.
        """
        judge = self.discriminator
        opinion = None
        if heard:
            frozen = {name: each.detach() for name, each in judge.named_parameters()}
            opinion = functional_call(judge, frozen, (y_BCHW,))
        return Verdict(judge(x_BCHW), judge(y_BCHW.detach()), opinion)

    def own_loss(self, verdict: Verdict, lecam: float, decay: float = 0.999) -> Tensor:
        """Hinge loss with LeCam's term; also moves the averages."""
        real, fake = verdict.real, verdict.fake
        loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        if lecam > 0:
            usual_real, usual_fake = self.averages_2.clone().unbind()
            loss = loss + lecam * F.relu(real - usual_fake).square().mean()
            loss = loss + lecam * F.relu(usual_real - fake).square().mean()
        with torch.no_grad():
            now_2 = torch.stack([real.mean(), fake.mean()]).to(self.averages_2)
            if bool(torch.isfinite(now_2).all()):
                self.averages_2.lerp_(now_2, 1 - decay)
        return loss


def balance(reconstruction: Tensor, opinion: Tensor, last: nn.Parameter, most: float) -> Tensor:
    """Ratio of the two losses' gradients at the last layer, at most `most`; a constant for autograd."""
    (ours,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (theirs,) = torch.autograd.grad(opinion, last, retain_graph=True)
    ratio: Tensor = ours.norm() / (theirs.norm() + 1e-4)
    return ratio.clamp(0, most).detach()
