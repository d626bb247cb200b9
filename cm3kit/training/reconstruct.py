"""The reconstruction loss: weighted distances between pictures."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cm3kit.config import Settings
from cm3kit_tokenizers.vq.losses import laplacian, ssim
from cm3kit_tokenizers.vq.lpips import Lpips


class LossWeights(Settings):
    """Weights of the reconstruction terms, of the commitment term (β), and of the entropy term of the codes.

    `log_l2` weighs the mean logarithm of each picture's squared error, which is its PSNR but for a factor:
    where `l2` is ruled by the worst pictures, every picture counts the same here. `lpips` needs the files
    `lpips_vgg` (torchvision's vgg16) and `lpips_heads` (vgg.pth of the package lpips). `entropy` makes each vector
    sure of its code and all codes equally frequent, at a softmax `temperature` over distances. `swapped` puts β on the
    codes' side instead of the encoder's, as taming-transformers does by default; it is there to repeat its runs.
    """

    l1: float = Field(1.0, ge=0)
    l2: float = Field(4.0, ge=0)
    log_l2: float = Field(0.0, ge=0)
    laplacian: float = Field(0.5, ge=0)
    ssim: float = Field(0.1, ge=0)
    lpips: float = Field(0.0, ge=0)
    lpips_vgg: Path | None = None
    lpips_heads: Path | None = None
    commitment: float = Field(0.25, ge=0)
    swapped: bool = False
    entropy: float = Field(0.0, ge=0)
    temperature: float = Field(0.01, gt=0)

    @model_validator(mode="after")
    def _files(self) -> LossWeights:
        if self.lpips and (self.lpips_vgg is None or self.lpips_heads is None):
            raise ValueError("lpips needs the files lpips_vgg and lpips_heads")
        return self

    def bottleneck(self, commitment: Tensor, moved: Tensor) -> Tensor:
        """The weighted sum of the encoder's side and the codes' side (arXiv:1711.00937, eq. 3)."""
        if self.swapped:
            return commitment + self.commitment * moved
        return self.commitment * commitment + moved


class Reconstruction(nn.Module):
    """The weighted sum of distances, and each of them for the log."""

    def __init__(self, weights: LossWeights) -> None:
        super().__init__()
        self.weights = weights
        self.lpips: Lpips | None = None
        if weights.lpips and weights.lpips_vgg is not None and weights.lpips_heads is not None:
            self.lpips = Lpips.open(weights.lpips_vgg, weights.lpips_heads)

    def forward(self, x_BCHW: Tensor, y_BCHW: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Of pixels in [−1, 1] and their reconstructions, in fp32."""
        weights = self.weights
        y_BCHW = y_BCHW.float()
        l2_B = (y_BCHW - x_BCHW).square().mean(dim=(1, 2, 3))
        l1, l2 = F.l1_loss(y_BCHW, x_BCHW), l2_B.mean()
        total = weights.l1 * l1 + weights.l2 * l2
        total = total + weights.log_l2 * l2_B.clamp_min(1e-5).log().mean()
        total = total + weights.laplacian * laplacian(y_BCHW, x_BCHW)
        total = total + weights.ssim * (1 - ssim(y_BCHW, x_BCHW))
        figures = {"psnr": float(10 * torch.log10(4 / l2.detach())), "l1": float(l1.detach())}
        if self.lpips is not None:
            distance = self.lpips(x_BCHW, y_BCHW).mean()
            total, figures["lpips"] = total + weights.lpips * distance, float(distance.detach())
        return total, figures
