"""New rows of embeddings that begin where the old ones are on average."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from cm3kit_tokenizers.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def grow_vocabulary(model: PreTrainedModel, size: int, mean: bool = False) -> None:
    """Give the model `size` ids in place, unless it has as many.

    With `mean` the new rows of embedding and head are the mean of the old ones (Hewitt, "Initializing new
    word embeddings for pretrained language models", 2021), which keeps what the model says of old ids; else
    they are drawn from the global generator as transformers draws fresh ones.
    """
    old = model.get_input_embeddings().weight.shape[0]
    if old >= size:
        return
    model.resize_token_embeddings(size, mean_resizing=False)
    for each in per_layer_tables(model):
        rows_VD = each.weight
        mean_1D = rows_VD.float().mean(0, keepdim=True).to(rows_VD.dtype)
        replace_table(model, each, torch.cat([rows_VD, mean_1D.repeat(max(0, size - len(rows_VD)), 1)]))
    if not mean:
        return
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for table in _tables(module):
            table[old:] = table[:old].float().mean(0).to(table.dtype)


@torch.no_grad()
def init_mask_embedding(
    model: PreTrainedModel, mask_id: int, how: Literal["mean", "keep"] = "mean"
) -> PreTrainedModel:
    """Set the input embedding of the mask id in place, to convert a model that has never seen one.

    Args:
        how: "mean" of all other rows; "keep" leaves the row, of a model that was trained with it. The head
            changes only where it is the same table; the mask id is never written.

    Raises:
        ConfigError: the id is outside the vocabulary, or `how` is unknown (`bad_value`).
    """
    table = model.get_input_embeddings().weight
    if not 0 <= mask_id < len(table):
        raise ConfigError(f"mask id = {mask_id}: the model knows 0 to {len(table) - 1}.", code="bad_value")
    if how not in ("mean", "keep"):
        raise ConfigError(f"mask embedding = {how!r}: mean or keep.", code="bad_value")
    if how == "mean":
        others = table.float().sum(0) - table[mask_id].float()
        table[mask_id] = (others / max(1, len(table) - 1)).to(table.dtype)
    return model


def per_layer_tables(model: PreTrainedModel) -> list[nn.Embedding]:
    """Tables besides the embedding that ids look up: those of every layer's own inputs (Gemma 3n, Gemma 4)."""
    if not getattr(model.config, "vocab_size_per_layer_input", None):
        return []
    named = model.named_modules()
    return [each for name, each in named if isinstance(each, nn.Embedding) and name.endswith("_per_layer")]


def replace_table(model: PreTrainedModel, table: nn.Embedding, rows_VD: Tensor) -> None:
    """Give a table of `per_layer_tables` other rows in place, one for each id, and tell the configuration."""
    table.weight = nn.Parameter(rows_VD.detach().to(table.weight.dtype))
    table.num_embeddings, table.padding_idx = len(rows_VD), None
    for module in model.modules():
        if hasattr(module, "vocab_size_per_layer_input"):
            module.vocab_size_per_layer_input = len(rows_VD)
    model.config.vocab_size_per_layer_input = len(rows_VD)


def _tables(module: nn.Module | None) -> list[Tensor]:
    """Weight and bias, as far as there are any; each has one row an id."""
    found = [getattr(module, name, None) for name in ("weight", "bias")]
    return [each for each in found if isinstance(each, Tensor)]
