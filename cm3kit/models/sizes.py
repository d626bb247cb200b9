"""A configuration of transformers held against the weights beside it, before anything of its sizes is made."""

from __future__ import annotations

import json
from pathlib import Path

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
COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "num_attention_heads", "num_key_value_heads")


def hold_configuration(folder: Path) -> None:
    """Refuse a configuration whose sizes are not those of the weights beside it, before a model of them is made."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = {name: config.get(name) for name in SIZES}
        heads = {name: config.get(name) for name in COUNTS[3:]}
        layers = {name: config.get(name) for name in COUNTS[:3]}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{folder / 'config.json'} cannot be read: {error}", code="bad_checkpoint"
        ) from error
    hold_sizes(folder / "config.json", sizes | heads, layers, files)
