"""Who finds and opens models that are no folder of ours, of a hub or of a public family, and how they are tried out."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

from cm3kit.decoders.fast_llama import supports
from cm3kit.decoders.probe import check_backbone
from cm3kit.fill.defaults import Defaults
from cm3kit.fill.parts import Parts
from cm3kit.models.families import BUILT_IN
from cm3kit.models.windows import clear_windows
from cm3kit.registry import Registry


class Opener(Protocol):
    """Knows one kind of model."""

    def find(self, wanted: str) -> Path | None:
        """The folder or file of such a model by its name; ModelError if it nearly is one, with what it lacks."""

    def open(self, source: Path) -> Parts:
        """Its parts; ModelError (`bad_checkpoint`) if they cannot be used. None knows a folder of ours better."""
        raise NotImplementedError


TRIAL = 64  # ids of the row that a decoder of a family that we have no engine for is tried out on when it is opened
openers: Registry[Opener] = Registry("kind of model")


def find_foreign(wanted: str) -> tuple[Opener, Path] | None:
    """Who knows the model of a name or path, and where it lies; None if nobody does."""
    import_module(BUILT_IN)
    found = ((openers[name], openers[name].find(wanted)) for name in openers)
    return next(((opener, place) for opener, place in found if place is not None), None)


def try_out(backbone: PreTrainedModel, folder: Path, defaults: Defaults) -> None:
    """Refuse a decoder whose logits here are not its own (`bad_checkpoint`); those of `LeanEngine` are known."""
    if supports(backbone) and backbone.dtype == torch.float32:
        return
    clear_windows(backbone, defaults.window)
    causal, full = "cm3" in defaults.decoders, "diffusion" in defaults.decoders
    check_backbone(backbone, str(folder), min(TRIAL, defaults.window), causal=causal, full=full)
