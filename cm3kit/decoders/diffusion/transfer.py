"""Tensors between the host and a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(values: Tensor | Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Numbers of the host on a device; the host goes on at once. A tensor keeps its type."""
    values = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if device.type != "cuda":
        return values.to(device)
    # Only from pinned memory a copy does not wait for what the device is at.
    return values.pin_memory().to(device, non_blocking=True)


def workable(logits_MV: Tensor) -> Tensor:
    """Logits without their history: where they are, or on the CPU if the device has no fp64, as draws need."""
    return logits_MV.detach().cpu() if logits_MV.device.type == "mps" else logits_MV.detach()
