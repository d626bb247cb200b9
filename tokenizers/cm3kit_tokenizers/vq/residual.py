"""Residual quantisation with one id per cell: a code is a sum of one vector from each of several small codebooks.

Residual VQ (arXiv:2107.03312, arXiv:2203.01941) assigns one id per level to a cell. Here these are the digits of one
id, with the first level as the highest digit, so that grids still have one id per cell. The number of codes is the
product of the levels' sizes, hence smaller than with separate ids; the advantage is that few vectors give many codes,
all of which are updated with every batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from cm3kit_tokenizers.vq.quantizers import Quantizer, nearest, quantizers

DECAY, RESTART_BELOW = 0.99, 0.05


@quantizers("residual")
class Residual(Quantizer):
    """The nearest of all sums; in training, vectors start and restart from residuals of the levels before them."""

    averaged = starts = False
    counts_L: Tensor
    begun: Tensor

    def __init__(self, codes: int, code_dim: int, levels: Sequence[int] = ()) -> None:
        super().__init__(codes, code_dim, levels)
        self.base = nn.ParameterList(
            torch.randn(size, code_dim) * code_dim**-0.5 / 2**level for level, size in enumerate(self.levels)
        )
        self.register_buffer("counts_L", torch.ones(sum(self.levels)))
        self.register_buffer("begun", torch.tensor(False))

    @classmethod
    def check(cls, codes: int, code_dim: int, levels: Sequence[int]) -> None:
        """ValueError unless there are two or more levels of at least 2 vectors, with the product `codes`."""
        if len(levels) < 2 or any(size < 2 for size in levels) or math.prod(levels) != codes:
            raise ValueError(
                f"residual needs two or more levels of at least 2 with the product {codes} (codes)"
            )

    def sums(self) -> Tensor:
        """Every code's vector, `(K, D)`."""
        sums_KD: Tensor = self.base[0]
        for level_SD in self.base[1:]:
            sums_KD = (sums_KD[:, None] + level_SD).flatten(0, 1)
        return sums_KD

    def digits(self, codes_N: Tensor) -> list[Tensor]:
        """The digits of ids, one `(N,)` per level, the first level first."""
        found: list[Tensor] = []
        for size in reversed(self.levels):
            found.insert(0, codes_N % size)
            codes_N = codes_N // size
        return found

    @torch.no_grad()
    def settle(self, codebook_KD: Tensor) -> None:
        """Write all sums."""
        codebook_KD.copy_(self.sums())

    def learn(
        self, vectors_ND: Tensor, codebook_KD: Tensor, rng: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the base, with the codes' gradients going to the summed vectors."""
        with torch.autocast(vectors_ND.device.type, enabled=False):
            if rng is not None:
                self._revive(vectors_ND.detach(), rng)
            return super().learn(vectors_ND, self.sums(), rng)

    @torch.no_grad()
    def _revive(self, vectors_ND: Tensor, rng: Generator) -> None:
        """Reset unused vectors (initially all) to residuals of the batch."""
        digits = None if not self.begun else self.digits(nearest(vectors_ND, self.sums()))
        left_ND, counts = vectors_ND, torch.split(self.counts_L, list(self.levels))
        for level, (base_SD, counts_S) in enumerate(zip(self.base, counts, strict=True)):
            if digits is not None:
                used_S = torch.bincount(digits[level], minlength=len(base_SD)).to(counts_S)
                counts_S.lerp_(used_S, 1 - DECAY)
            dead_S = (counts_S < RESTART_BELOW) | ~self.begun
            pick = torch.randint(len(left_ND), (int(dead_S.sum()),), generator=rng)
            base_SD[dead_S] = left_ND[pick.to(left_ND.device)]
            counts_S[dead_S] = 1.0
            left_ND = left_ND - base_SD[nearest(left_ND, base_SD) if digits is None else digits[level]]
        self.begun.fill_(True)
