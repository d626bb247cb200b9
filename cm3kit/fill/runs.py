"""Folders of runs and of models: their kinds, their progress, and what they are called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from cm3kit.config import read_yaml
from cm3kit_tokenizers.errors import Cm3kitError

INDEX = "model_index.json"
RECIPE, FINAL, MODEL, RUNS = "config.yaml", "final", "model", ".runs"
Kind = Literal["model", "decoder", "image tokenizer", "text tokenizer"]


def kind_of_run(folder: Path) -> Kind | None:
    """What a folder is the run of; None for a folder that is none."""
    if not (folder / RECIPE).is_file():
        return None
    try:
        keys = read_yaml(folder / RECIPE).keys()
    except Cm3kitError:
        return None
    if {"objective", "text", "image", "window"} <= keys:
        return "decoder"
    if {"tokenizer", "codebook"} <= keys:
        return "image tokenizer"
    return "text tokenizer" if {"data", "size"} <= keys else None


def steps_of(run: Path) -> tuple[int, int]:
    """Steps that are saved, and steps in all, of a run."""
    numbers = [
        int(found[1]) for each in run.glob("step-*") if (found := re.fullmatch(r"step-(\d+)", each.name))
    ]
    loop: Any = read_yaml(run / RECIPE).get("loop") or {}
    return max(numbers, default=0), int(loop.get("steps", 0))


def named(folder: Path) -> str:
    """What a model is called: its folder, or owner/name of one that lies in the cache of a hub."""
    if folder.parent.name != "snapshots":
        return folder.name
    return folder.parents[1].name.removeprefix("models--").replace("--", "/")


def name_of(folder: Path) -> str:
    """What a model is called: as its folder, as the run that it is of, or as on the hub that it came from."""
    whole = folder.resolve()
    return whole.parent.name if whole.name == MODEL and kind_of_run(whole.parent) else named(folder)
