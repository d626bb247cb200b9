"""What a model folder holds, loaded: tokenizers, id space, defaults, and the weights of its decoders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from cm3kit.fill.defaults import DIFFUSION, Defaults
from cm3kit.models.backbone import load_backbone
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer


@dataclass(frozen=True)
class Parts:
    """What a model folder holds, loaded; a diffusion decoder of its own is not (`diffusion_backbone`)."""

    name: str
    folder: Path
    text: TextTokenizer
    image: ImageTokenizer
    vocab: Vocab
    backbone: PreTrainedModel
    defaults: Defaults

    @property
    def public(self) -> bool:
        """Whether it is a public model, which has never seen minimal HTML."""
        return self.defaults.prompt_style != "minimal"


def own_diffusion(parts: Parts) -> bool:
    """Whether the diffusion decoder has weights of its own."""
    return DIFFUSION in parts.defaults.decoders and (parts.folder / DIFFUSION).is_dir()


def diffusion_backbone(parts: Parts) -> PreTrainedModel:
    """The weights of the diffusion decoder: its own, read now, or those of both decoders.

    Raises:
        ModelError: a tensor is missing, extra or mis-shaped (`bad_checkpoint`).
    """
    return (
        load_backbone(parts.folder / DIFFUSION, len(parts.vocab)) if own_diffusion(parts) else parts.backbone
    )


def count_parameters(folder: Path) -> int:
    """Numbers in the weight files of a folder, by their headers.

    Raises:
        ModelError: a file cannot be read (`bad_checkpoint`).
    """
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read: {error}.", code="bad_checkpoint") from error
    return total
