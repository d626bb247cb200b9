"""What the units of `gpu.py` share: where they run, how they time, and what the machine can do at best."""

from __future__ import annotations

import fcntl
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "checkpoints" / "pictures"


@dataclass(frozen=True)
class Context:
    """Where units run: `scratch` is a folder for files; on a GPU `tiny` is False."""

    device: torch.device
    tiny: bool
    scratch: Path

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def sync(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Measure while no other lane measures; others may still compile, or prepare on the CPU."""
        with self._held("measuring"):
            yield
            self.sync()

    @contextmanager
    def room(self, much: bool) -> Iterator[None]:
        """Where much memory is needed, no other lane needs much meanwhile."""
        with self._held("room") if much else nullcontext():
            yield

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        # The file's lock goes with the process, however that ends.
        with open(self.scratch / name, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)

    def seconds(self, act: Callable[[], object], repeats: int, warm: int = 1) -> float:
        """Median seconds of a call, with the device waited for; `warm` calls before do not count."""
        for _ in range(warm):
            act()
        with self.alone():
            return self.median(act, repeats)

    def median(self, act: Callable[[], object], repeats: int) -> float:
        """Median seconds of a call, whoever else measures."""
        took = []
        for _ in range(repeats):
            self.sync()
            start = time.perf_counter()
            act()
            self.sync()
            took.append(time.perf_counter() - start)
        return statistics.median(took)

    def fresh(self) -> None:
        """Forget what the units before have compiled and hold, and go back to PyTorch's own number formats."""
        import torch._dynamo

        torch._dynamo.reset()
        gc.collect()
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gb(self) -> float:
        """Most bytes that tensors have taken of the device since `fresh`; of the process on a CPU."""
        from cm3kit.training.speed import peak_memory

        return peak_memory(self.device) / 1e9


def context(tiny: bool, scratch: Path) -> Context:
    """The GPU if there is one and sizes are not tiny, else the CPU."""
    cuda = torch.cuda.is_available() and not tiny
    torch.set_num_threads(4 if cuda else 1)
    return Context(torch.device("cuda" if cuda else "cpu"), tiny, scratch)


def ceilings(where: Context) -> dict[str, Any]:
    """The device, and what it does at best: bytes that a copy reads and writes, products of square matrices."""
    megabytes, size = (4, 128) if where.tiny else (1024, 8192)
    source = torch.randn(megabytes * 2**18, device=where.device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / where.seconds(lambda: target.copy_(source), 10, warm=3)
    found: dict[str, Any] = {"GB/s copied": copied / 1e9}
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        a_NN = torch.randn(size, size, device=where.device, dtype=dtype)
        b_NN = torch.randn(size, size, device=where.device, dtype=dtype)
        took = where.seconds(lambda a=a_NN, b=b_NN: a @ b, 10, warm=3)  # type: ignore[misc]
        found[f"TFLOP/s {name}"] = 2 * size**3 / took / 1e12
    if where.cuda:
        properties = torch.cuda.get_device_properties(where.device)
        found["GB"] = properties.total_memory / 1e9
        found["processors"] = properties.multi_processor_count
        host = torch.empty(64 * 2**20, dtype=torch.uint8, pin_memory=True)
        found["GB/s from pinned memory"] = host.nbytes / where.seconds(
            lambda: host.to(where.device, non_blocking=True), 5
        ) / 1e9  # fmt: skip
    return found
