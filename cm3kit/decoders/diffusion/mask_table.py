"""What slots may hold, as rows of one table on the model's device: a mask that came up before costs no copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cm3kit.decoders.transfer import upload

HELD = 1 << 26
"""Bytes of masks that are kept from pass to pass."""


class MaskTable:
    """Masks by the tensor objects that constraints hand out, which nobody writes to.

    Args:
        device: where the rows are wanted.
        vocab_size: V.
        mask: id of an open slot; it has no part in any row.
        image: ids of image codes.
        held: bytes to keep.
    """

    def __init__(
        self, device: torch.device, vocab_size: int, mask: int, image: range, held: int = HELD
    ) -> None:
        self.device, self.mask, self._held = device, mask, held
        self._other_V = torch.ones(vocab_size, dtype=torch.bool)
        self._other_V[image.start : image.stop] = False
        self._clear()

    def fits(self, logits_MV: Tensor) -> bool:
        """Whether it is for such logits."""
        return (self.device, len(self._other_V)) == (logits_MV.device, logits_MV.shape[1])

    def trim(self) -> None:
        """Between passes: forget everything where there is too much of it."""
        if len(self._known) * len(self._other_V) > self._held:
            self._clear()

    def rows(self, masks: Sequence[Tensor]) -> list[int]:
        """The row of each mask (V,), which stays its own until `trim`."""
        fresh = {id(each): each for each in masks if id(each) not in self._row_of}
        if fresh:
            self._add(list(fresh.values()))
        return [self._row_of[id(each)] for each in masks]

    def only_codes(self, row: int) -> bool:
        """Whether nothing but image codes is allowed."""
        return self._codes[row]

    def allowed(self, rows: Sequence[int]) -> Tensor:
        """Masks (N, V) on the device."""
        return self._table_RV.index_select(0, upload(rows, self.device))

    def _clear(self) -> None:
        self._row_of: dict[int, int] = {}
        # Holding the masks keeps the identity of each its own.
        self._known: list[Tensor] = []
        self._codes: list[bool] = []
        self._table_RV = torch.empty(0, len(self._other_V), dtype=torch.bool, device=self.device)

    def _add(self, masks: list[Tensor]) -> None:
        start, stop = len(self._known), len(self._known) + len(masks)
        if stop > len(self._table_RV):
            room = torch.empty(max(stop, 2 * start), len(self._other_V), dtype=torch.bool, device=self.device)
            room[:start] = self._table_RV[:start]
            self._table_RV = room
        # The mask id itself has probability 0 (arXiv:2406.07524, sec. 3.2.3).
        new_KV = torch.stack(masks)
        new_KV[:, self.mask] = False
        self._table_RV[start:stop] = upload(new_KV, self.device)
        self._codes += (~(new_KV & self._other_V).any(-1)).tolist()
        self._row_of |= {id(each): start + number for number, each in enumerate(masks)}
        self._known += masks
