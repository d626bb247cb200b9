"""How fast a training is: tokens a second, the share of what the processor could do, time left, memory.

Model FLOPs utilisation (MFU; Chowdhery et al., arXiv:2204.02311, app. B) is FLOPs a second of the model's own products
over the peak of the processor. Recomputed activations do not count. A decoder's step costs, for each id of a row,

    6 P + 12 L D T     (P weights in products, the head's too; L layers, D hidden size, T ids in a row)

of which a third is forward. Frozen weights have no gradient of their own and cost 4 P. Attention counts whole, as is
usual, though a causal one needs half. The peak of a GPU is its maker's for dense products; that of a CPU, which nobody
states, is the fastest product of two square matrices that it does here, so its MFU compares with what it can do.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from cm3kit.quantities import duration
from cm3kit.training.observe import Seen
from cm3kit.training.precision import computes_bf16, processes
from cm3kit.training.task import LoopSettings, Report, Task, TaskWithWork

# Dense products in bf16, FLOPs a second, by the makers' data sheets; the first name that is part of the device's.
PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12,
    "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A10": 125e12, "RTX 5090": 209e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12, "MI300X": 1307e12,
}  # fmt: skip
WINDOW = 20  # steps that a speed is the median of
LEFT = "seconds left"


def told(name: str, value: float) -> tuple[str, str]:
    """A figure for display: its name and value.

    >>> told("seconds left", 1440.0), told("loss", 1.23456)
    (('time left', '24 min'), ('loss', '1.235'))
    """
    return ("time left", duration(value)) if name == LEFT else (name, f"{value:.4g}")


@lru_cache
def peak_flops(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second that a device does at best: stated where its name is known and dtype is bf16, else measured."""
    if device.startswith("cuda") and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, rate in PEAKS.items():
            if part in name:
                return rate
    return measured_flops(device, dtype)


def measured_flops(device: str, dtype: torch.dtype, size: int = 1024, seconds: float = 0.15) -> float:
    """FLOPs a second of the fastest of several products of square matrices."""
    if device.startswith("cuda"):
        size *= 8
    a_NN = torch.ones(size, size, dtype=dtype, device=device)
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds or best == float("inf"):
        start = time.perf_counter()
        a_NN @ a_NN
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def step_flops(model: nn.Module, rows: int, window: int, layers: int, width: int) -> float:
    """FLOPs of a training step of a decoder on rows of `window` ids; see above.

    Args:
        model: every matrix in it is a product, but for embeddings that are no head.
        layers: of attention, and `width` the hidden size.
    """
    tables = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    heads = {id(each.weight) for each in model.modules() if isinstance(each, nn.Linear)}
    weights = [each for each in model.parameters() if each.ndim == 2 and id(each) not in tables - heads]
    products = sum((6 if each.requires_grad else 4) * each.numel() for each in weights)
    return rows * window * (products + 12.0 * layers * width * window)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has held; on a GPU, the most that tensors have taken of it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # which Windows has not

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


class Gauge:
    """Watches the time that steps take; an observer (`training.observe`)."""

    def __init__(self, task: Task, settings: LoopSettings) -> None:
        self.task, self.settings = task, settings
        self._took: deque[float] = deque(maxlen=WINDOW)
        self._first = True
        self._last: Seen | None = None

    def begin(self, step: int, total: int) -> None:
        """Nothing is known of any step."""
        self._took.clear()
        self._first = True

    def saw(self, seen: Seen) -> None:
        """Note how long it took; the first step, which may compile, counts only while there is no other."""
        if self._first and self._took:
            self._took.clear()
            self._first = False
        self._took.append(seen.took)
        self._last = seen

    def end(self) -> None:
        """Nothing is held open."""

    def now(self) -> dict[str, float]:
        """`tokens/s`, `MFU %`, `seconds left`, `peak GB`, as far as they are known."""
        seen = self._last
        if seen is None or not self._took:
            return {}
        took = statistics.median(self._took)
        device = next(self.task.model.parameters()).device
        out: dict[str, float] = {}
        if isinstance(self.task, TaskWithWork):
            tokens, flops = self.task.work(seen.rows)
            out["tokens/s"] = tokens * seen.figures.get("filled", 1.0) / took
            out["MFU %"] = 100 * flops / took / processes() / peak_flops(str(device), self._dtype(device))
        out[LEFT] = took * (seen.total - seen.step)
        out["peak GB"] = peak_memory(device) / 1e9
        return out

    def telling(self, report: Report) -> Report:
        """The same report with what the gauge says besides."""

        def told(step: int, total: int, figures: dict[str, Any]) -> None:
            report(step, total, {**figures, **self.now()})

        return told

    def _dtype(self, device: torch.device) -> torch.dtype:
        precision = self.settings.precision
        fast = computes_bf16(device.type == "cpu") if precision == "auto" else precision == "bf16"
        return torch.bfloat16 if fast else torch.float32
