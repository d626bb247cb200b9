"""Bytes that tensors take while code runs, counted as they come and go; with fake tensors it costs none."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cm3kit.training.speed import peak_memory


def _like_first(args: Sequence[Any]) -> int:
    first = args[0]
    return first.numel() * first.element_size() if isinstance(first, Tensor) else 0


# Memory that kernels allocate internally: by the name of the operator, bytes per call.
INSIDE: Mapping[str, Callable[[Sequence[Any]], int]] = {
    "aten.logsumexp.default": _like_first,  # exp(x − max)
}


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages of all tensors that operators return while it is entered.

    Attributes:
        now: bytes in use.
        peak: most of them at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._count(each)
        if str(func) in INSIDE:
            self.peak = max(self.peak, self.now + INSIDE[str(func)](args))
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known or not math.isfinite(size):
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def refilled(model: nn.Module) -> nn.Module:
    """The model with new weights and buffers, of no content, on the CPU; in place, and tied weights stay tied."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, each in held.items():
                if each is None:
                    continue
                if id(each) not in made:
                    new = torch.empty(each.shape, dtype=each.dtype, device="cpu")
                    learns = each.requires_grad
                    made[id(each)] = nn.Parameter(new, learns) if isinstance(each, nn.Parameter) else new
                held[name] = made[id(each)]  # type: ignore[assignment]
    return model


def torch_is_warm() -> None:
    """Run a little of everything that training runs, so that what libraries load on first use is loaded."""
    layer = torch.nn.TransformerEncoderLayer(64, 2, 64, dropout=0.0, batch_first=True)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            layer(torch.ones(1, 8, 64)).square().mean().backward()
        optimizer.step()


def peak_while(act: Callable[[], object]) -> int:
    """Peak bytes of memory of this process while a function runs; of its whole life where only that is known."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
        act()
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        act()
        return peak_memory(torch.device("cpu"))


def resident() -> int:
    """Bytes of memory that this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_memory(torch.device("cpu"))
    import resource

    return pages * resource.getpagesize()
