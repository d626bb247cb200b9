"""The device and the number format that training computes in."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from cm3kit_tokenizers.errors import ConfigError

Made = TypeVar("Made")
Precision = Literal["auto", "fp32", "bf16"]
# Variables of MPI's launchers: Intel's and MPICH, Open MPI, MVAPICH2.
SIZES = "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"
RANKS = "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"


def accelerator(precision: Precision, device: str) -> Accelerator:
    """An accelerator on a device; `auto` is bf16 where that computes in it, else fp32.

    Where a launcher has started several processes (its environment says so), it joins them.

    Raises:
        ConfigError: accelerate has been told to spread the model itself.
    """
    _refuse_other_spreading()
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
    """How many processes a launcher (`cm3kit train --num-processes`, accelerate's, torchrun, MPI's) has started."""
    return _told("WORLD_SIZE", SIZES, 1)


def rank() -> int:
    """Which of them this is; 0 is the main one."""
    return _told("RANK", RANKS, 0)


def _told(name: str, names_of_mpi: Sequence[str], otherwise: int) -> int:
    """A number of the environment; like accelerate, by names of MPI only where processes run on CPUs."""
    names = (name,) if torch.cuda.is_available() else (name, *names_of_mpi)
    return next((int(text) for each in names if (text := os.environ.get(each))), otherwise)


def started_alone() -> str | None:
    """A message for where accelerate was asked for several processes, and has started only one."""
    if processes() > 1 or not {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys():
        return None
    return (
        "accelerate launch has started one process, and training goes on in it;"
        " several are started by --multi_gpu, on CPUs too, or by MPI"
    )


def _refuse_other_spreading() -> None:
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1"):
            raise ConfigError(
                f"accelerate is configured for {name}, which this loop does not use; launch with --multi_gpu instead,"
                " and set loop.shard=true to spread the model over the processes (FSDP2).",
                code="bad_config",
            )


def in_turn(make: Callable[[], Made], device: str) -> Made:
    """What every process makes, the main one first, so that the others find the files that it has written."""
    if processes() == 1:
        return make()
    _refuse_other_spreading()
    with PartialState(cpu=_on_cpu(device)).main_process_first():
        return make()


def _on_cpu(device: str) -> bool:
    """Whether accelerate needs the setting that several processes run on the CPU."""
    return device == "cpu" or (processes() > 1 and not torch.cuda.is_available())


def _leave() -> None:
    """Leave the process group, to avoid a warning."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def computes_bf16(cpu: bool) -> bool:
    """Whether the device that accelerate will choose has instructions for products in bf16."""
    if not cpu and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))
