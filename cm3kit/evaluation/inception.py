"""Inception v3 as Fréchet distances have always used it, with the weights of 2015 (arXiv:1706.08500).

The weights are a file of the user's: `pt_inception-2015-12-05-6726825d.pth` of the project pytorch-fid, TensorFlow's
network under torchvision's names. It differs from torchvision's own Inception in its weights, in 1,008 classes, and
in pooling: means leave padding out, and the last block takes a maximum. The network is written out in plain torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3kit_tokenizers.vq.families.opening import read_weights
from cm3kit_tokenizers.weights import place_exactly

FEATURES, SIDE, CLASSES = 2048, 299, 1008
SHA256 = "6726825d"  # how that of the known file begins
NAME = f"pt_inception-2015-12-05-{SHA256}.pth of pytorch-fid"

Size = int | tuple[int, int]
Layer = tuple[str, int, Size]  # name, channels out, kernel; padded to keep the size unless it strides
Branch = list[Layer | tuple[Layer, Layer]]  # one after another; a pair works side by side


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, before: int, channels: int, kernel: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features of the same grid, or of half of it."""
        return F.relu(self.bn(self.conv(x_BCHW)))


class Block(nn.Module):
    """Branches side by side, whose channels are joined.

    Args:
        before: channels in.
        branches: the layers of each; one whose first layer is called `branch_pool` sees means of 3 × 3.
        stride: 2 in the last layer of each branch, with a pooling for a branch beside them.
        maximum: `branch_pool` sees maxima.
    """

    def __init__(self, before: int, branches: list[Branch], stride: int = 1, maximum: bool = False) -> None:
        super().__init__()
        self.stride, self.maximum = stride, maximum
        self.paths: list[list[tuple[str, ...]]] = []
        self.channels = before if stride == 2 else 0
        for branch in branches:
            path, width = [], before
            for step in branch:
                layers: list[Layer] = [step] if isinstance(step[0], str) else list(step)
                for name, channels, kernel in layers:
                    halves = stride == 2 and step is branch[-1]
                    padding = 0 if halves else _half(kernel)
                    self.add_module(name, Unit(width, channels, kernel, stride if halves else 1, padding))
                path.append(tuple(name for name, _, _ in layers))
                width = sum(channels for _, channels, _ in layers)
            self.paths.append(path)
            self.channels += width

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Joined features."""
        found: list[Tensor] = []
        for path in self.paths:
            y_BCHW = self._pooled(x_BCHW) if path[0] == ("branch_pool",) else x_BCHW
            for names in path:
                y_BCHW = torch.cat([self.get_submodule(name)(y_BCHW) for name in names], 1)
            found.append(y_BCHW)
        if self.stride == 2:
            found.append(F.max_pool2d(x_BCHW, 3, 2))
        return torch.cat(found, 1)

    def _pooled(self, x_BCHW: Tensor) -> Tensor:
        if self.maximum:
            return F.max_pool2d(x_BCHW, 3, 1, 1)
        return F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)


def _half(kernel: Size) -> Size:
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def _a(pool: int) -> list[Branch]:
    double: Branch = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    five: Branch = [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)]
    return [[("branch1x1", 64, 1)], five, double, [("branch_pool", pool, 1)]]


def _c(width: int) -> list[Branch]:
    row, column = (1, 7), (7, 1)
    single: Branch = [("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)]
    double: Branch = [
        ("branch7x7dbl_1", width, 1), ("branch7x7dbl_2", width, column), ("branch7x7dbl_3", width, row),
        ("branch7x7dbl_4", width, column), ("branch7x7dbl_5", 192, row),
    ]  # fmt: skip
    return [[("branch1x1", 192, 1)], single, double, [("branch_pool", 192, 1)]]


def _e() -> list[Branch]:
    row, column = (1, 3), (3, 1)
    single: Branch = [
        ("branch3x3_1", 384, 1), (("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column)),
    ]  # fmt: skip
    double: Branch = [
        ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3),
        (("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)),
    ]  # fmt: skip
    return [[("branch1x1", 320, 1)], single, double, [("branch_pool", 192, 1)]]


_B: list[Branch] = [
    [("branch3x3", 384, 3)],
    [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
]
_D: list[Branch] = [
    [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
    [
        ("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, 3),
    ],
]  # fmt: skip
_BLOCKS: list[tuple[str, list[Branch], int, bool]] = [
    ("Mixed_5b", _a(32), 1, False), ("Mixed_5c", _a(64), 1, False), ("Mixed_5d", _a(64), 1, False),
    ("Mixed_6a", _B, 2, False), ("Mixed_6b", _c(128), 1, False), ("Mixed_6c", _c(160), 1, False),
    ("Mixed_6d", _c(160), 1, False), ("Mixed_6e", _c(192), 1, False), ("Mixed_7a", _D, 2, False),
    ("Mixed_7b", _e(), 1, False), ("Mixed_7c", _e(), 1, True),
]  # fmt: skip


class Inception(nn.Module):
    """`forward(pixels_BCHW)` of uint8 pixels of any size is the mean of the last features, `(B, 2048)`."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Unit(3, 32, 3, 2), Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Unit(64, 80, 1), Unit(80, 192, 3)
        channels, self.blocks = 192, []
        for name, branches, stride, maximum in _BLOCKS:
            block = Block(channels, branches, stride, maximum)
            self.add_module(name, block)
            self.blocks.append(name)
            channels = block.channels
        self.fc = nn.Linear(FEATURES, CLASSES)  # part of the file, and unused

    @classmethod
    def open(cls, path: Path, warn: Callable[[str], None] = lambda line: None) -> Inception:
        """From the known file, or from another of its form, with a warning.

        Raises:
            ModelError: the file is not there, refused, or of another network (`bad_checkpoint`).
        """
        found = read_weights(path)
        with torch.device("meta"):
            made = cls()
        made = made.to_empty(device="cpu")
        counts = {name: torch.tensor(0) for name in made.state_dict() if name.endswith("num_batches_tracked")}
        place_exactly(made, counts | found, path, cause=f"it is not {NAME}, which FID is defined by.")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(SHA256):
            warn(f"{path} is not {NAME}; its figures are not comparable with published ones.")
        return made.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Features, resized and scaled as pytorch-fid does."""
        x_BCHW = pixels_BCHW.float() / 255
        x_BCHW = F.interpolate(x_BCHW, (SIDE, SIDE), mode="bilinear", align_corners=False) * 2 - 1
        x_BCHW = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_BCHW)))
        x_BCHW = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x_BCHW, 3, 2)))
        x_BCHW = F.max_pool2d(x_BCHW, 3, 2)
        for name in self.blocks:
            x_BCHW = self.get_submodule(name)(x_BCHW)
        return x_BCHW.mean((2, 3))
