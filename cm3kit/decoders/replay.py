"""Functions of tensors that are called over and over on a GPU, where launching kernels one by one takes the time.

A CUDA graph of a function's kernels is captured once for each setting of it, and replayed as a whole. It has the bits
of the function itself; `torch.compile` fuses kernels besides, which may round differently.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cm3kit.compiling import is_compile_failure, reason
from cm3kit.decode_options import CompileName

Function = Callable[..., Any]


class UncompiledWarning(RuntimeWarning):
    """Something goes on without being compiled or captured."""

    plain = True


class Replay:
    """Implements a function of a setting and of tensors, whose shapes are always the same under one setting.

    The function is handed in at each call and is always the same one: what holds it may hold this.

    Args:
        device: where the tensors are.
        mode: `off` calls the function, `auto` replays graphs on CUDA, and `on` compiles it before that.
    """

    def __init__(self, device: torch.device, mode: CompileName) -> None:
        self._device, self._compiles = device, mode == "on"
        self._captures = mode != "off" and device.type == "cuda"
        self._met: set[Hashable] = set()
        self._graphs: dict[Hashable, _Graph] = {}
        self._fused: Function | None = None
        self._pool: Any = None

    def __call__(self, function: Function, setting: Hashable, *inputs: Tensor) -> Any:
        """What the function gives; overwritten by the next call under the same setting.

        Args:
            function: works on tensors alone, and reads none of them back. Others than those handed in have to stay
                where they are.
        """
        if setting in self._graphs:
            return self._graphs[setting](*inputs)
        try:
            # A first call compiles kernels and finds the fastest, which a capture must not.
            if not self._captures or setting not in self._met:
                self._met.add(setting)
                return self._call(function, setting, *inputs)
            # Graphs are replayed one after the other, so they share what they need while they run.
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            again = partial(self._call, function, setting)
            self._graphs[setting] = _Graph(again, inputs, self._device, self._pool)
            return self._graphs[setting](*inputs)
        except Exception as error:
            if not (self._compiles or self._captures) or not _may_be_compiling(error):
                raise
            line = f"decoding goes on uncompiled, and slower ({reason(error)}); --compile off does without"
            warnings.warn(line, UncompiledWarning, stacklevel=2)
            self._compiles = self._captures = False
            return function(setting, *inputs)

    def _call(self, function: Function, setting: Hashable, *inputs: Tensor) -> Any:
        if not self._compiles:
            return function(setting, *inputs)
        import torch._dynamo

        if self._fused is None:
            self._fused = torch.compile(function, dynamic=False, fullgraph=True)
        # One compilation for each size of the cache, and for each decoder of the process.
        with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096):
            return self._fused(setting, *inputs)


def _may_be_compiling(error: Exception) -> bool:
    return isinstance(error, RuntimeError | ImportError | OSError) or is_compile_failure(error)


class _Graph:
    """The kernels of a call, which read copies of its inputs."""

    def __init__(
        self, function: Function, inputs: tuple[Tensor, ...], device: torch.device, pool: Any
    ) -> None:
        self._inputs = [each.clone() for each in inputs]
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Captured is what the current device does, which need not be this one; other threads may use it meanwhile.
        with (
            torch.cuda.device(device),
            torch.cuda.graph(self._graph, pool, stream, capture_error_mode="thread_local"),
        ):
            self._outputs = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        with torch.cuda.device(self._inputs[0].device):
            self._graph.replay()
        return self._outputs
