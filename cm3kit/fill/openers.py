"""Who opens models that are no folder of ours, and how decoders of somebody else are tried out when they are opened."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import PreTrainedModel

from cm3kit.decoders.fast_llama import supports
from cm3kit.decoders.probe import check_backbone
from cm3kit.models.families import BUILT_IN
from cm3kit.models.windows import clear_windows
from cm3kit.registry import Registry

if TYPE_CHECKING:
    from cm3kit.fill.folder import Defaults, Parts


class Opener(Protocol):
    """Opens one kind of model."""

    def owns(self, wanted: str) -> bool:
        """Whether a name or path is of such a model; ModelError if it nearly is, with what it lacks."""

    def open(self, source: Path) -> Parts:
        """Its parts; ModelError (`bad_checkpoint`) if they cannot be used."""


TRIAL = 64  # ids of the row that a decoder of a family that we have no engine for is tried out on when it is opened
openers: Registry[Opener] = Registry("kind of model")


def opener_of(wanted: str) -> Opener | None:
    """Who opens the model of a name or path; None if nobody does."""
    import_module(BUILT_IN)
    return next((openers[name] for name in openers if openers[name].owns(wanted)), None)


def try_out(backbone: PreTrainedModel, folder: Path, defaults: Defaults) -> None:
    """Refuse a decoder whose logits here are not its own (`bad_checkpoint`); those of `LeanEngine` are known."""
    if supports(backbone) and backbone.dtype == torch.float32:
        return
    clear_windows(backbone, defaults.window)
    causal, full = "cm3" in defaults.decoders, "diffusion" in defaults.decoders
    check_backbone(backbone, str(folder), min(TRIAL, defaults.window), causal=causal, full=full)
