"""A small classifier that predicts the name and the artist of a picture, for judging generated ones.

`benchmarks/judge.py` trains one.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cm3kit_tokenizers.errors import ModelError

SIZE, STRIDE = 64, 2  # pixels of a side, and how many of them the first layer moves by
WIDTHS = 32, 64, 128, 256


class Block(nn.Module):
    """Two convolutions beside a shortcut (ResNet, arXiv:1512.03385)."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.short = (
            nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if into != out
            else nn.Identity()
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The same number of pictures, at half the size where the stride is 2."""
        out: Tensor = torch.relu(self.second(self.first(x_BCHW)) + self.short(x_BCHW))
        return out


class Judge(nn.Module):
    """`names` and `artists` in the order of the logits."""

    def __init__(self, names: list[str], artists: list[str]) -> None:
        super().__init__()
        self.names, self.artists = names, artists
        layers: list[nn.Module] = [
            nn.Conv2d(3, WIDTHS[0], 3, STRIDE, 1, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(),
        ]
        before = WIDTHS[0]
        for width in WIDTHS:
            layers += [Block(before, width, 1 if width == before else 2), Block(width, width, 1)]
            before = width
        self.body = nn.Sequential(*layers)
        self.name, self.artist = nn.Linear(before, len(names)), nn.Linear(before, len(artists))

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of names (B, N) and of artists (B, A) for RGB, uint8, of 64 × 64 pixels."""
        features_BC = self.body((pixels_BCHW.float() - 127.5) / 64).mean((2, 3))
        return self.name(features_BC), self.artist(features_BC)

    def save(self, folder: Path) -> None:
        """Weights in half precision, and the names."""
        folder.mkdir(parents=True, exist_ok=True)
        half = {
            name: each.half().contiguous() if each.is_floating_point() else each
            for name, each in self.state_dict().items()
        }
        save_file(half, folder / "judge.safetensors")
        (folder / "judge.json").write_text(
            json.dumps({"names": self.names, "artists": self.artists, "stride": STRIDE})
        )

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """A judge that was saved; ModelError (`bad_checkpoint`) if it is none of this network."""
        known = json.loads((folder / "judge.json").read_text())
        if known.get("stride") != STRIDE:
            raise ModelError(
                f"{folder} holds a judge of another network; train it again by benchmarks/judge.py.",
                code="bad_checkpoint",
            )
        judge = cls(known["names"], known["artists"])
        judge.load_state_dict(load_file(folder / "judge.safetensors"))
        return judge.float().eval()

    @torch.inference_mode()
    def ranks(self, pixels_BCHW: Tensor, names: list[str]) -> list[int]:
        """How many names each picture resembles more than its own; 0 is right."""
        number = {name: index for index, name in enumerate(self.names)}
        logits_BN = self(pixels_BCHW)[0].float()
        own_B = logits_BN.gather(1, torch.tensor([[number[each]] for each in names], device=logits_BN.device))
        return [int(each) for each in (logits_BN > own_B).sum(1)]

    @torch.inference_mode()
    def probabilities(self, pixels_BCHW: Tensor, names: list[str]) -> list[float]:
        """The probability of each picture's own name."""
        number = {name: index for index, name in enumerate(self.names)}
        shares_BN = self(pixels_BCHW)[0].float().softmax(-1)
        own_B1 = torch.tensor([[number[each]] for each in names], device=shares_BN.device)
        return [float(each) for each in shares_BN.gather(1, own_B1)[:, 0]]

    @torch.inference_mode()
    def drawn_by(self, pixels_BCHW: Tensor) -> list[str]:
        """The predicted artist of each picture."""
        return [self.artists[int(each)] for each in self(pixels_BCHW)[1].argmax(1)]
