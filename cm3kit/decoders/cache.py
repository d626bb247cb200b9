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
        rows: index into the flattened (key or value, slot, head, position) rows of a layer; of keys alone where values
            lie across; where it is fused, into (slot, position).
        mask_N1C: 0 where a slot may look, -inf elsewhere, for N = slots * kv_heads; for N = slots where it is fused.
        positions_S: position of the new id in each slot.
        span: C, the length that attention runs over.
        across: index into the flattened (slot, head, coordinate, position) numbers of values that lie across.
        fused: whether attention is one call of SDPA, whose mask is in the format of keys and values.
    """

    rows: Tensor
    mask_N1C: Tensor
    positions_S: Tensor
    span: int
    across: Tensor | None = None
    fused: bool = False


class Cache:
    """Keys and values of S slots: one (2, S * kv_heads, capacity, head_dim) tensor a layer.

    Args:
        across: keep the values of a head as (head_dim, capacity), so that those of a coordinate lie side by side.
        fused: plan steps for SDPA; a layer is (S, capacity, 2, kv_heads, head_dim), so that what a step writes of a
            slot lies together, and what it reads in few pages of memory.
    """

    def __init__(
        self, layers: int, slots: int, kv_heads: int, capacity: int, head_dim: int, device: torch.device,
        dtype: torch.dtype = torch.float32, across: bool = False, fused: bool = False,
    ) -> None:  # fmt: skip
        self.capacity = -(-capacity // BUCKET) * BUCKET
        self.slots, self.kv_heads, self.head_dim = slots, kv_heads, head_dim
        self.across, self.fused = across, fused
        shape: tuple[int, ...] = (2, slots * kv_heads, self.capacity, head_dim)
        shape = (slots, self.capacity, 2, kv_heads, head_dim) if fused else shape
        self.layers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self._starts = torch.arange(slots, device=device) * self.capacity
        heads_2SH = torch.arange(2 * slots * kv_heads, device=device).view(2, slots, kv_heads)
        offsets_S2H = heads_2SH.transpose(0, 1) * self.capacity
        self._offsets = (offsets_S2H[:, 0] if across else offsets_S2H).reshape(slots, -1)
        numbers = slots * kv_heads * head_dim if across else 0
        self._across = torch.arange(numbers, device=device).view(slots, numbers // slots) * self.capacity
        self._range = torch.arange(self.capacity, device=device)
        self._flat = [(each[0].view(-1, head_dim), each[1].view(-1)) for each in self.layers if across]
        # What the last step looked at, as most look as far as the one before.
        self._seen: tuple[int, list[tuple[Tensor, Tensor]]] = 0, []

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
        dtype = self.layers[0].dtype if self.fused else torch.float32
        mask_SC = torch.zeros(hidden_SC.shape, dtype=dtype, device=self._range.device)
        mask_SC.masked_fill_(hidden_SC, -torch.inf)
        mask_N1C = (mask_SC if self.fused else mask_SC.repeat_interleave(self.kv_heads, 0))[:, None]
        rows = self._starts + positions_S if self.fused else (self._offsets + positions_S[:, None]).flatten()
        across = (self._across + positions_S[:, None]).flatten() if self.across else None
        return Write(rows, mask_N1C, positions_S, span, across, self.fused)

    def write(self, layer: int, write: Write, kv_SHD: Tensor) -> tuple[Tensor, Tensor]:
        """Put one position in, keys before values in kv_SHD, and return both, (N, C, head_dim).

        Values that lie across are returned so, (N, head_dim, C); both as (S, kv_heads, C, head_dim) where it is fused.
        """
        if write.across is not None:
            keys_RD, values_R = self._flat[layer]
            keys_RD.index_copy_(0, write.rows, kv_SHD[:, : self.kv_heads].reshape(-1, self.head_dim))
            values_R.scatter_(0, write.across, kv_SHD[:, self.kv_heads :].reshape(-1))
            if self._seen[0] != write.span:
                self._seen = write.span, [self._look(each, write.span) for each in self.layers]
            return self._seen[1][layer]
        store = self.layers[layer]
        if write.fused:
            kv_SR = kv_SHD.reshape(self.slots, -1).to(store.dtype)
            store.view(-1, kv_SR.shape[1]).index_copy_(0, write.rows, kv_SR)
            keys_SCHD, values_SCHD = store[:, : write.span].unbind(2)
            return keys_SCHD.transpose(1, 2), values_SCHD.transpose(1, 2)
        kv_RD = kv_SHD.reshape(-1, self.head_dim).to(store.dtype)
        store.view(-1, self.head_dim).index_copy_(0, write.rows, kv_RD)
        return store[0, :, : write.span], store[1, :, : write.span]

    def _look(self, layer: Tensor, span: int) -> tuple[Tensor, Tensor]:
        return layer[0, :, :span], layer[1].view(-1, self.head_dim, self.capacity)[..., :span]

    def put(self, layer: int, slot: int, kv_HTD: Tensor) -> None:
        """Put a whole prompt into a slot, from position 0; keys before values in kv_HTD."""
        if self.fused:
            there = self.layers[layer][slot, : kv_HTD.shape[1]]
            there.copy_(kv_HTD.transpose(0, 1).view(there.shape))
            return
        for there, given in zip(self._by_slot(self.layers[layer]), kv_HTD.chunk(2), strict=True):
            there[slot, :, : kv_HTD.shape[1]] = given

    def copy(self, source: int, target: int, length: int) -> None:
        """Fork: copy the first positions of one slot into another."""
        for layer in self.layers:
            if self.fused:
                layer[target, :length] = layer[source, :length]
                continue
            for there in self._by_slot(layer):
                there[target, :, :length] = there[source, :, :length]

    def _by_slot(self, layer: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (slots, kv_heads, capacity, head_dim)."""
        keys, values = layer.view(2, self.slots, self.kv_heads, -1)
        lengths = (self.head_dim, self.capacity) if self.across else (self.capacity, self.head_dim)
        values = values.unflatten(-1, lengths)
        return keys.unflatten(-1, (self.capacity, self.head_dim)), (
            values.transpose(-1, -2) if self.across else values
        )
