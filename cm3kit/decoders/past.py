"""Keys and values that grow: those of `LeanEngine`, which needs no more than two tensors a layer.

Modules of transformers get its own `DynamicCache`, of which this has the part that is used here.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class PastLayer(Protocol):
    """Of one layer, (B, heads, T, head_dim) each."""

    keys: Tensor
    values: Tensor


class Past(Protocol):
    """What is kept between passes, of `LeanEngine` or of a module."""

    @property
    def layers(self) -> list[PastLayer]:
        """Keys and values by layer."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Add positions of a layer; all of its keys and values."""

    def get_seq_length(self) -> int:
        """Positions that are kept."""

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last −`tokens_to_remove` positions."""


class _Layer:
    def __init__(self, like: Tensor) -> None:
        self.keys = self.values = torch.tensor([], dtype=like.dtype, device=like.device)


class PlainPast:
    """Implements `Past`."""

    def __init__(self) -> None:
        self._layers: list[PastLayer] = []

    @property
    def layers(self) -> list[PastLayer]:
        """See `Past`."""
        return self._layers

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """See `Past`."""
        while len(self._layers) <= layer_idx:
            self._layers.append(_Layer(key_states))
        layer = self._layers[layer_idx]
        layer.keys = torch.cat([layer.keys, key_states], dim=-2)
        layer.values = torch.cat([layer.values, value_states], dim=-2)
        return layer.keys, layer.values

    def get_seq_length(self) -> int:
        """See `Past`."""
        return self._layers[0].keys.shape[-2] if self._layers else 0

    def crop(self, tokens_to_remove: int) -> None:
        """See `Past`."""
        for layer in self._layers:
            kept = max(0, layer.keys.shape[-2] + tokens_to_remove)
            layer.keys, layer.values = layer.keys[..., :kept, :], layer.values[..., :kept, :]
