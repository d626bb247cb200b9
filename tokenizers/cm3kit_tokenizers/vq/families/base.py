"""What a family of checkpoints is: how it is told from its tensors, and how these become ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from cm3kit_tokenizers.registry import Registry


@dataclass(frozen=True, slots=True)
class Source:
    """Weights as others wrote them.

    Args:
        tensors: by the names of the file.
        hints: the settings that came along (a YAML, a config.json), of any shape; never trusted over the tensors.
        path: for messages.
        hashes: SHA-256 of each file that was read, by its name.
    """

    tensors: Mapping[str, Tensor]
    hints: Mapping[str, Any]
    path: Path
    hashes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A checkpoint in our terms.

    Args:
        settings: fields of `ImageTokenizerConfig`.
        network: tensors by the names of diffusers' `VQModel`.
        quantizer: tensors of the quantizer itself, for those that have some.
        cause: what is probably wrong if the tensors do not fit, as a sentence.
        notes: what was assumed, for the user.
    """

    settings: dict[str, Any]
    network: dict[str, Tensor]
    quantizer: dict[str, Tensor] = field(default_factory=dict)
    cause: str = ""
    notes: tuple[str, ...] = ()


class Family(Protocol):
    """One way of writing a VQGAN down."""

    title: str

    def detect(self, source: Source) -> bool:
        """Whether the tensors (and where these cannot tell, the settings) are of this family."""

    def convert(self, source: Source) -> Mapped:
        """Rename and reshape; ModelError (`bad_checkpoint`) where the checkpoint is of another sort."""


families: Registry[type[Family]] = Registry("family of image tokenizers")
