"""A denoiser whose model reads a page in another spelling than the one it is written in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.denoiser import Ask, Denoiser

Spell = Callable[[list[int]], tuple[list[int], list[int]]]
"""`spell(ids)`: the row that the model reads, and where each id begins in it; a mask stands for itself."""


class SpellingDenoiser:
    """Asks another denoiser for the same masked positions in rows that are spelt out.

    Args:
        inner: the model.
        spell: spells a row.
    """

    def __init__(self, inner: Denoiser, spell: Spell) -> None:
        self._inner, self._spell = inner, spell

    @property
    def mask(self) -> int:
        """Id that stands for what is not written yet."""
        return self._inner.mask

    def open_block(self, ids_BT: Tensor, lengths: Sequence[int], block: tuple[int, int]) -> None:
        """Nothing is kept between passes."""

    def logits(self, ask: Ask) -> list[Tensor]:
        """For each row fp32 logits (M, V) of what belongs at its slots; errors are those of the model's denoiser."""
        rows: list[list[int]] = []
        slots: list[Tensor] = []
        for ids_T, length, wanted in zip(ask.ids_BT, ask.lengths, ask.slots, strict=True):
            row, places = self._spell(ids_T[:length].tolist()) if len(wanted) else ([], [])
            rows.append(row)
            slots.append(torch.tensor([places[slot] for slot in wanted.tolist()], dtype=torch.long))
        spelt_BT = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.long)
        for number, row in enumerate(rows):
            spelt_BT[number, : len(row)] = torch.tensor(row, dtype=torch.long)
        return self._inner.logits(Ask(spelt_BT, tuple(map(len, rows)), tuple(slots), ask.times))
