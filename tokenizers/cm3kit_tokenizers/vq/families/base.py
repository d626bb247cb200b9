"""The protocol of checkpoint families: detection and conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from cm3kit_tokenizers.registry import Registry


@dataclass(frozen=True, slots=True)
class Source:
    """Weights of a checkpoint before conversion.

    Args:
        tensors: by their names in the file.
        hints: settings beside the weights (a YAML, a config.json) of any form; the tensors take precedence.
        path: for messages.
        hashes: SHA-256 of each file, by name.
    """

    tensors: Mapping[str, Tensor]
    hints: Mapping[str, Any]
    path: Path
    hashes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A converted checkpoint.

    Args:
        settings: fields of `ImageTokenizerConfig`.
        network: tensors by their names in diffusers' `VQModel`.
        quantizer: tensors of the quantizer, if it has any.
        cause: the likely cause if the tensors do not fit, as a sentence.
        notes: assumptions, for the user.
    """

    settings: dict[str, Any]
    network: dict[str, Tensor]
    quantizer: dict[str, Tensor] = field(default_factory=dict)
    cause: str = ""
    notes: tuple[str, ...] = ()


class Family(Protocol):
    """One checkpoint format of a VQGAN."""

    title: str

    def detect(self, source: Source) -> bool:
        """Whether the tensors (or the settings, if the tensors are ambiguous) are of this family."""

    def convert(self, source: Source) -> Mapped:
        """Rename and reshape; ModelError (`bad_checkpoint`) if the checkpoint is of another kind."""


families: Registry[type[Family]] = Registry("family of image tokenizers")
