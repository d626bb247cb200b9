"""A static key-value cache whose slots have lengths of their own.

Each slot starts at its own position 0, so what a slot computes does not depend on how long its
neighbours are, as it would behind left padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Attention runs over a multiple of this, and whole vectors of masked positions add exact zeros.
BUCKET = 32


@dataclass(frozen=True, slots=True)
class Write:
    """Where one step writes and looks.

    Attributes:
        rows: index into the flattened (slot, head, position) rows of a layer.
        mask_S11C: 0 where a slot may look, -inf elsewhere.
        positions_S: position of the new id in each slot.
        span: C, the length that attention runs over.
    """

    rows: Tensor
    mask_S11C: Tensor
    positions_S: Tensor
    span: int


class Cache:
    """Keys and values of S slots: one (S, 2 * kv_heads, capacity, head_dim) tensor a layer, keys first."""

    def __init__(
        self, layers: int, slots: int, kv_heads: int, capacity: int, head_dim: int, device: torch.device
    ) -> None:
        self.capacity = -(-capacity // BUCKET) * BUCKET
        self.kv_heads, self.head_dim = kv_heads, head_dim
        shape = (slots, 2 * kv_heads, self.capacity, head_dim)
        self.layers = [torch.zeros(shape, device=device) for _ in range(layers)]
        self._offsets = torch.arange(slots * 2 * kv_heads, device=device).view(slots, -1) * self.capacity
        self._range = torch.arange(self.capacity, device=device)

    @property
    def nbytes(self) -> int:
        """Memory that the cache holds."""
        return sum(layer.nbytes for layer in self.layers)

    def at(self, positions: Sequence[int], active: Sequence[bool]) -> Write:
        """Plan a step that writes one id into every slot; idle slots do not widen the attention."""
        longest = max((p for p, on in zip(positions, active, strict=True) if on), default=0)
        span = min(self.capacity, -(-(longest + 1) // BUCKET) * BUCKET)
        positions_S = torch.tensor(positions, device=self._range.device)
        hidden_SC = self._range[:span] > positions_S[:, None]
        mask_SC = torch.zeros(hidden_SC.shape, device=self._range.device).masked_fill_(hidden_SC, -torch.inf)
        rows = (self._offsets + positions_S[:, None]).flatten()
        return Write(rows, mask_SC[:, None, None], positions_S, span)

    def write(self, layer: int, write: Write, kv_SHD: Tensor) -> tuple[Tensor, Tensor]:
        """Put one position in, and return keys and values (S, kv_heads, C, head_dim)."""
        store = self.layers[layer]
        store.view(-1, self.head_dim).index_copy_(0, write.rows, kv_SHD.reshape(-1, self.head_dim))
        seen = store[:, :, : write.span]
        return seen[:, : self.kv_heads], seen[:, self.kv_heads :]

    def put(self, layer: int, slot: int, kv_HTD: Tensor) -> None:
        """Put a whole prompt into a slot, from position 0."""
        self.layers[layer][slot, :, : kv_HTD.shape[1]] = kv_HTD

    def copy(self, source: int, target: int, length: int) -> None:
        """Fork: copy the first positions of one slot into another."""
        for layer in self.layers:
            layer[target, :, :length] = layer[source, :, :length]
