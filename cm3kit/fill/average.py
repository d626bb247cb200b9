"""The average of two decoders' weights: what one has learnt since the other, in part.

Where a decoder was trained on from another, straight lines between both are good ones: a third of the way has much of
what is new and has lost little of what was known (WiSE-FT, arXiv:2109.01903, sec. 3; model soups, arXiv:2203.05482).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cm3kit.fill.trained import NAME, Trained
from cm3kit.models.backbone import load_backbone, save_backbone
from cm3kit.publish import publishing
from cm3kit.targets import refuse_existing
from cm3kit_tokenizers.errors import ConfigError, ModelError


def average(first: Path, second: Path, share: float, output: Path) -> Path:
    """Write a decoder with (1 − share) · first + share · second for each weight, in fp16, and return its folder.

    It is used as `first` is: `trained.json` is copied from there.

    Args:
        first: folder of a decoder, as training or `save_pretrained` writes it.
        second: folder of another of the same shape, as of one that was trained on from `first`.
        share: of `second`, in [0, 1].

    Raises:
        ConfigError: `share` is outside [0, 1], or tensors differ in name or shape (`bad_config`).
        ModelError: a folder holds no decoder.
        OutputError: `output` exists.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share = {share}: give a value from 0 to 1.", code="bad_config")
    for folder in (first, second):
        if not folder.is_dir():
            raise ModelError(f"{folder} is no folder of a decoder.", code="unknown_model")
    refuse_existing(output, "remove it or choose another folder")
    model, other = load_backbone(first, 0), load_backbone(second, 0)
    mine, theirs = model.state_dict(), other.state_dict()
    unlike = [
        name
        for name in sorted({*mine, *theirs})
        if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape
    ]
    if unlike:
        raise ConfigError(
            f"{first} and {second} are not of one shape: {len(unlike)} tensors differ, {unlike[0]} for one; "
            "average a decoder with one that was trained on from it.",
            code="bad_config",
        )
    # A new tensor for each: in place, tied ones would be averaged twice.
    mixed = {
        name: weight.lerp(theirs[name], share) if weight.is_floating_point() else weight
        for name, weight in mine.items()
    }
    model.load_state_dict(mixed)
    with publishing(output) as new:
        save_backbone(model, new, half=True)
        if Trained.load(first) is not None:
            shutil.copyfile(first / NAME, new / NAME)
    return output
