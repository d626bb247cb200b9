"""The device and the number format that training computes in."""

from __future__ import annotations

from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

Precision = Literal["auto", "fp32", "bf16"]


def accelerator(precision: Precision, device: str) -> Accelerator:
    """An accelerator on a device; `auto` is bf16 where that computes in it, else fp32."""
    cpu = device == "cpu"
    fast = _computes_bf16(cpu) if precision == "auto" else precision == "bf16"
    mixed = "bf16" if fast else "no"
    try:
        return Accelerator(cpu=cpu, mixed_precision=mixed)
    except ValueError:
        # accelerate keeps one precision and device for the whole process; an earlier training chose others.
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=cpu, mixed_precision=mixed)


def _computes_bf16(cpu: bool) -> bool:
    """Whether the device that accelerate will choose has instructions for products in bf16."""
    if not cpu and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))
