"""What a decoder was trained for, in a file beside its weights: who assembles a model need not say it again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError

from cm3kit.config import Settings
from cm3kit.decoders.settings import DecoderName
from cm3kit_tokenizers.errors import ModelError

NAME = "trained.json"


class Trained(Settings):
    """What a decoder was trained for; see `Defaults` and `DiffusionDefaults`, whose fields these are.

    `window` is None where nobody knows.
    """

    window: int | None = Field(None, ge=1)
    decoders: tuple[DecoderName, ...] = Field(("cm3",), min_length=1)
    shift: bool = False
    unseen: bool = False
    trained_block: int | None = Field(None, ge=1)
    layout: Literal["page", "behind"] = "page"
    hints: bool = False

    def save(self, folder: Path) -> None:
        """Write the file."""
        written = self.model_dump_json(indent=2, exclude=None if self.hints else {"hints"})
        (folder / NAME).write_text(written + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What the file of a folder says; None where there is none, as beside other people's weights.

        Raises:
            ModelError: it cannot be read (`bad_checkpoint`).
        """
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, ValidationError) as error:
            line = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{path} does not say what was trained: {line}.", code="bad_checkpoint"
            ) from error
