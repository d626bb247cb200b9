"""Small tensors between the host and a device, without one waiting for the other.

Copies are asynchronous only from and to pinned memory, whose blocks PyTorch keeps until they are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(values: Tensor | Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Numbers of the host as a tensor on a device; the host goes on at once. A tensor keeps its type."""
    if not isinstance(values, Tensor):
        values = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    elif device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=device.type == "cuda")


def put(target: Tensor, source: Tensor) -> None:
    """Copy a tensor of the host into one of a device; the host goes on at once."""
    target.copy_(source.pin_memory() if target.is_cuda else source, non_blocking=True)


class Readback:
    """Tensors of one device on their way to the host.

    Args:
        sources: they may be overwritten by what is queued on their device from now on.
    """

    def __init__(self, *sources: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._copies: Sequence[Tensor] = sources
        if sources[0].is_cuda:
            self._copies = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in sources]
            for copy, source in zip(self._copies, sources, strict=True):
                copy.copy_(source, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record(torch.cuda.current_stream(sources[0].device))

    def read(self) -> list[list[Any]]:
        """Their numbers; waits for what was queued before the copies, and for nothing behind them."""
        if self._done is not None:
            self._done.synchronize()
        return [each.tolist() for each in self._copies]


def workable(logits_MV: Tensor) -> Tensor:
    """Logits without their history: where they are, or on the CPU if the device has no fp64, as draws need."""
    return logits_MV.detach().cpu() if logits_MV.device.type == "mps" else logits_MV.detach()
