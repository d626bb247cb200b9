"""Image tokenizers of models without pictures, or without an image decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from PIL import Image
from torch import Tensor, nn

from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vq.config import ImageTokenizerConfig
from cm3kit_tokenizers.vq.model import ImageTokenizer


class NoPictures(ImageTokenizer):
    """An `ImageTokenizer` without codes, whose methods raise ConfigError (`bad_value`)."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.config = ImageTokenizerConfig()

    @property
    def size(self) -> int:
        """No codes."""
        return 0

    @property
    def grid(self) -> tuple[int, int]:
        """(0, 0)."""
        return 0, 0

    @property
    def sha256(self) -> str:
        """Of nothing."""
        return hashlib.sha256(b"").hexdigest()

    @property
    def decoder_sha256(self) -> str:
        """Of nothing."""
        return self.sha256

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Refused."""
        _refuse()

    def decode(self, codes_BN: Tensor) -> Tensor:
        """Refused."""
        _refuse()

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Refused."""
        _refuse()

    def save(self, folder: Path, half: bool = False) -> None:
        """Refused."""
        _refuse()


class Undrawn(ImageTokenizer):
    """An image tokenizer without its decoder: it encodes pictures, and refuses to decode (`bad_value`)."""

    draws = False

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        self.network.decoder = nn.Identity()

    def decode(self, codes_BN: Tensor) -> Tensor:
        """Refused."""
        raise undrawn("a picture")

    def save(self, folder: Path, half: bool = False) -> None:
        """Refused."""
        raise undrawn("a model folder")


def undrawn(what: str) -> ConfigError:
    """The error for a model without an image decoder (`bad_value`)."""
    return ConfigError(
        f"{what} needs the half of the VQGAN that draws, which is not in the model's folder; put vqgan.ckpt of the"
        " first release into it.",
        code="bad_value",
    )


def _refuse() -> NoReturn:
    raise ConfigError(
        "this model is text-only and has no image tokenizer; use a model with pictures, or omit the pictures.",
        code="bad_value",
    )
