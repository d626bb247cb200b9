"""The device and the number format that training computes in."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

Made = TypeVar("Made")
Precision = Literal["auto", "fp32", "bf16"]


def accelerator(precision: Precision, device: str) -> Accelerator:
    """An accelerator on a device; `auto` is bf16 where that computes in it, else fp32.

    Where a launcher has started several processes (its environment says so), it joins them.
    """
    cpu = _on_cpu(device)
    fast = computes_bf16(cpu) if precision == "auto" else precision == "bf16"
    mixed = "bf16" if fast else "no"
    if processes() > 1:
        atexit.register(_leave)
    try:
        return Accelerator(cpu=cpu, mixed_precision=mixed)
    except ValueError:
        # accelerate keeps one precision and device for the whole process; an earlier training chose others.
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=cpu, mixed_precision=mixed)


def processes() -> int:
    """How many processes a launcher (`cm3kit train --num-processes`, accelerate's, torchrun) has started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Which of them this is; 0 is the main one."""
    return int(os.environ.get("RANK") or 0)


def in_turn(make: Callable[[], Made], device: str) -> Made:
    """What every process makes, the main one first, so that the others find the files that it has written."""
    if processes() == 1:
        return make()
    with PartialState(cpu=_on_cpu(device)).main_process_first():
        return make()


def _on_cpu(device: str) -> bool:
    """Whether accelerate has to be told that it is the CPU that several processes run on."""
    return device == "cpu" or (processes() > 1 and not torch.cuda.is_available())


def _leave() -> None:
    """Take leave of the other processes, which would otherwise be warned of."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def computes_bf16(cpu: bool) -> bool:
    """Whether the device that accelerate will choose has instructions for products in bf16."""
    if not cpu and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))
