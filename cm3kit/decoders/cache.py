"""A static key-value cache whose slots have lengths of their own.

Each slot starts at its own position 0, so what a slot computes does not depend on how long its
neighbours are, as it would behind left padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3kit.decoders.transfer import upload

# Attention runs over a multiple of this, and whole vectors of masked positions add exact zeros.
BUCKET = 32


@dataclass(frozen=True, slots=True)
class Write:
    """Where one step writes and looks.

    Attributes:
        rows: index into the flattened (key or value, slot, head, position) rows of a layer.
        mask_N1C: 0 where a slot may look, -inf elsewhere, for N = slots * kv_heads.
        positions_S: position of the new id in each slot.
        span: C, the length that attention runs over.
    """

    rows: Tensor
    mask_N1C: Tensor
    positions_S: Tensor
    span: int


class Cache:
    """Keys and values of S slots: one (2, S * kv_heads, capacity, head_dim) tensor a layer."""

    def __init__(
        self, layers: int, slots: int, kv_heads: int, capacity: int, head_dim: int, device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.capacity = -(-capacity // BUCKET) * BUCKET
        self.slots, self.kv_heads, self.head_dim = slots, kv_heads, head_dim
        shape = (2, slots * kv_heads, self.capacity, head_dim)
        self.layers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        heads_2SH = torch.arange(2 * slots * kv_heads, device=device).view(2, slots, kv_heads)
        self._offsets = heads_2SH.transpose(0, 1).reshape(slots, -1) * self.capacity
        self._range = torch.arange(self.capacity, device=device)

    @property
    def nbytes(self) -> int:
        """Memory that the cache holds."""
        return sum(layer.nbytes for layer in self.layers)

    def at(self, positions: Sequence[int], active: Sequence[bool]) -> Write:
        """Plan a step that writes one id into every slot; idle slots do not widen the attention."""
        longest = max((p for p, on in zip(positions, active, strict=True) if on), default=0)
        span = min(self.capacity, -(-(longest + 1) // BUCKET) * BUCKET)
        positions_S = upload(positions, self._range.device)
        hidden_SC = self._range[:span] > positions_S[:, None]
        mask_SC = torch.zeros(hidden_SC.shape, device=self._range.device).masked_fill_(hidden_SC, -torch.inf)
        mask_N1C = mask_SC.repeat_interleave(self.kv_heads, 0)[:, None]
        rows = (self._offsets + positions_S[:, None]).flatten()
        return Write(rows, mask_N1C, positions_S, span)

    def write(self, layer: int, write: Write, kv_SHD: Tensor) -> tuple[Tensor, Tensor]:
        """Put one position in, keys before values in kv_SHD, and return both, (N, C, head_dim)."""
        store = self.layers[layer]
        store.view(-1, self.head_dim).index_copy_(0, write.rows, kv_SHD.reshape(-1, self.head_dim))
        return store[0, :, : write.span], store[1, :, : write.span]

    def put(self, layer: int, slot: int, kv_HTD: Tensor) -> None:
        """Put a whole prompt into a slot, from position 0; keys before values in kv_HTD."""
        kv_2HTD = kv_HTD.reshape(2, self.kv_heads, *kv_HTD.shape[1:])
        self._by_slot(self.layers[layer])[:, slot, :, : kv_HTD.shape[1]] = kv_2HTD

    def copy(self, source: int, target: int, length: int) -> None:
        """Fork: copy the first positions of one slot into another."""
        for layer in self.layers:
            stored = self._by_slot(layer)
            stored[:, target, :, :length] = stored[:, source, :, :length]

    def _by_slot(self, layer: Tensor) -> Tensor:
        return layer.view(2, self.slots, self.kv_heads, self.capacity, self.head_dim)
