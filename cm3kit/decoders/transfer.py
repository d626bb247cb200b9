"""Small tensors between the host and a device, without one waiting for the other.

Copies are asynchronous only from and to pinned memory, whose blocks PyTorch keeps until they are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Numbers as a tensor on a device; the host goes on at once."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


class Readback:
    """A tensor on its way to the host.

    Args:
        source: it may be overwritten by what is queued on its device from now on.
    """

    def __init__(self, source: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._copy = source
        if source.is_cuda:
            self._copy = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._copy.copy_(source, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record(torch.cuda.current_stream(source.device))

    def read(self) -> list[Any]:
        """Its numbers; waits for what was queued before the copy, and for nothing behind it."""
        if self._done is not None:
            self._done.synchronize()
        found: list[Any] = self._copy.tolist()
        return found
