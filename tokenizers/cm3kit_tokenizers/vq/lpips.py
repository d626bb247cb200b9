"""LPIPS (arXiv:1801.03924): distance of VGG16 features, with local weight files; nothing is downloaded.

The network is implemented in torch with torchvision's layer numbers, so that its `vgg16` file fits. The heads are
the 7 kB file `vgg.pth` of the packages lpips and torchmetrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vq.families.opening import read_weights

CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0 is a max-pooling
TAPS = {
    3: 64,
    8: 128,
    15: 256,
    22: 512,
    29: 512,
}  # layers after which features are compared, and their channels
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def vgg16() -> nn.Sequential:
    """The convolutional part of VGG16 up to its last ReLU, with torchvision's layer numbers."""
    layers: list[nn.Module] = []
    before = 3
    for channels in CHANNELS:
        if channels:
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class Lpips(nn.Module):
    """`forward(x_BCHW, y_BCHW)` of pixels in [−1, 1], at least 16 on a side, is the distance of each pair: (B,)."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = vgg16()
        self.heads = nn.ParameterList(torch.zeros(1, each, 1, 1) for each in TAPS.values())
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False)

    @classmethod
    def open(cls, vgg: Path, heads: Path) -> Lpips:
        """Load torchvision's VGG16 file and the file of heads; ModelError (`bad_checkpoint`) if one does not fit."""
        with torch.device("meta"):
            made = cls()
        made = made.to_empty(device="cpu")
        made.shift.copy_(torch.tensor(SHIFT).view(1, 3, 1, 1))
        made.scale.copy_(torch.tensor(SCALE).view(1, 3, 1, 1))
        found = read_weights(vgg)
        for index, layer in enumerate(made.features):
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(_take(found, f"features.{index}.weight", layer.weight, vgg))
                assert layer.bias is not None
                layer.bias.copy_(_take(found, f"features.{index}.bias", layer.bias, vgg))
        found = read_weights(heads)
        for index, head in enumerate(made.heads):
            head.copy_(_take(found, f"lin{index}.model.1.weight", head, heads))
        return made.eval()

    def forward(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """Distances, `(B,)`."""
        both = (torch.cat([x_BCHW, y_BCHW]) - self.shift) / self.scale
        total_B = x_BCHW.new_zeros(len(x_BCHW))
        heads = iter(self.heads)
        for index, layer in enumerate(self.features):
            both = layer(both)
            if index in TAPS:
                x, y = (both / (both.square().sum(1, keepdim=True) + 1e-20).sqrt()).chunk(2)
                total_B = total_B + ((x - y).square() * next(heads)).sum(1).mean((1, 2))
        return total_B


def _take(found: Mapping[str, Tensor], name: str, wanted: Tensor, path: Path) -> Tensor:
    if name not in found or found[name].shape != wanted.shape:
        what = f"is {tuple(found[name].shape)}" if name in found else "is missing"
        raise ModelError(
            f"{path}: {name} {what}, expected {tuple(wanted.shape)}; LPIPS needs torchvision's vgg16 file and the"
            " heads' vgg.pth of the package lpips.",
            code="bad_checkpoint",
        )
    return found[name]
