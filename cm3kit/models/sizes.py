"""A configuration of transformers held against the weights beside it, before anything of its sizes is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3kit.models.families import Family, configured, read_config
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.weights import hold_sizes

SIZES = (
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "head_dim",
    "n_embd",
    "n_inner",
    "d_model",
    "ffn_dim",
)
INDEX = "model.safetensors.index.json"
COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "num_attention_heads", "num_key_value_heads")


def hold_configuration(folder: Path, whole: bool = True, family: Family | None = None) -> None:
    """Refuse a configuration whose sizes are not those of the weights beside it, before a model of them is made.

    Args:
        whole: refuse a folder that lacks some of its files of weights; else such a one is not held.
        family: the public family that it is of, if any.

    Raises:
        ModelError: that is so, or the configuration cannot be read (`bad_checkpoint`).
    """
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    lost = _lost(folder) if files else []
    if lost and whole:
        more = f" and {len(lost) - 1} more" if lost[1:] else ""
        raise ModelError(
            f"{folder} lacks {lost[0]}{more}, which {INDEX} names; fetch what is missing.",
            code="bad_checkpoint",
        )
    if lost or not files:
        return
    settings, raw = folder / "config.json", read_config(folder) or {}
    _hold(settings, raw, files)
    if family is not None:
        # It may call its numbers otherwise, and its configuration may be as large as they are.
        _hold(settings, configured(family, raw).to_dict(), files)


def _hold(settings: Path, said: Mapping[str, Any], files: Sequence[Path]) -> None:
    sizes = {name: said.get(name) for name in (*SIZES, *COUNTS[3:])}
    hold_sizes(settings, sizes, {name: said.get(name) for name in COUNTS[:3]}, files)


def _lost(folder: Path) -> list[str]:
    """Files of weights that the list beside them names and that are not there."""
    path = folder / INDEX
    if not path.is_file() or (folder / "model.safetensors").is_file():
        return []
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        named = sorted({str(name) for name in listed.values()})
    except (OSError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} names no files of weights; it is damaged.", code="bad_checkpoint"
        ) from error
    return [name for name in named if not (folder / name).is_file()]
