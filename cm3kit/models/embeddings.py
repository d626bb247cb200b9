"""New rows of embeddings that begin where the old ones are on average."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cm3kit_tokenizers.errors import ConfigError


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


def _tables(module: nn.Module | None) -> list[Tensor]:
    """Weight and bias, as far as there are any; each has one row an id."""
    found = [getattr(module, name, None) for name in ("weight", "bias")]
    return [each for each in found if isinstance(each, Tensor)]
