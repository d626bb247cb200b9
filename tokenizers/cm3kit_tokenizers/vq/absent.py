"""Image tokenizers of models that have no pictures, or cannot draw them."""

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
    """Stands where an `ImageTokenizer` would: it has no codes, and whatever asks for some is refused (`bad_value`)."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.config = ImageTokenizerConfig()

    @property
    def size(self) -> int:
        """No codes."""
        return 0

    @property
    def grid(self) -> tuple[int, int]:
        """No rows and no columns of codes."""
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
    """An image tokenizer without its decoder: it reads pictures, and refuses to draw one (`bad_value`)."""

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
    """What is missing of a model that reads pictures alone (`bad_value`)."""
    return ConfigError(
        f"{what} needs the half of the VQGAN that draws, which is not in the model's folder; put vqgan.ckpt of the"
        " first release into it.",
        code="bad_value",
    )


def _refuse() -> NoReturn:
    raise ConfigError(
        "this model writes words alone and has no image tokenizer; use a model with pictures, or leave them out.",
        code="bad_value",
    )
