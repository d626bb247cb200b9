"""What rows as runs of documents are; `models.documents` makes and attends to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Runs of positions of packed rows, laid end to end, that look at themselves alone.

    Attributes:
        lengths: of each run; all add up to rows × length.
        causal: of each run, whether it looks left only or at all of itself.
        left: whether all look left only.
        ends_N: int32, 0 and the end of each run, and the last end again as often as there is room.
        longest: no run is longer.
        kernel: "sdpa", "varlen" or "xformers".
        bias: what xformers takes instead, of that kernel.
    """

    lengths: tuple[int, ...]
    causal: tuple[bool, ...]
    left: bool
    ends_N: Tensor
    longest: int
    kernel: str = "sdpa"
    bias: Any = None

    @property
    def alike(self) -> bool:
        """Whether all look in one way, as kernels on CUDA want it."""
        return self.left or not any(self.causal)

    def on(self, device: torch.device, kernel: str) -> Documents:
        """The same for a kernel on a device."""
        bias = block_diagonal(self, device) if kernel == "xformers" else None
        return replace(self, ends_N=self.ends_N.to(device, non_blocking=True), kernel=kernel, bias=bias)


def block_diagonal(documents: Documents, device: torch.device) -> Any:
    """The bias of xformers that says the same."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask, BlockDiagonalMask

    kind = BlockDiagonalCausalMask if documents.left else BlockDiagonalMask
    return kind.from_seqlens(list(documents.lengths)).to(device)
