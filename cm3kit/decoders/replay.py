"""Functions of tensors that are called over and over on a GPU, where launching kernels one by one takes the time.

A CUDA graph of a function's kernels is captured once for each setting of it, and replayed as a whole. It has the bits
of the function itself; `torch.compile` fuses kernels besides, which may round differently.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from cm3kit.decode_options import CompileName

Function = Callable[..., Any]


class Replay:
    """Implements a function of a setting and of tensors, whose shapes are always the same under one setting.

    Args:
        function: works on tensors alone, and reads none of them back. Others than those handed in have to stay where
            they are. What it returns is overwritten by the next call under the same setting.
        device: where they are.
        mode: `off` calls the function, `auto` replays graphs on CUDA, and `on` compiles it before that.
    """

    def __init__(self, function: Function, device: torch.device, mode: CompileName) -> None:
        self._plain = self._function = function
        self._captures = mode != "off" and device.type == "cuda"
        self._met: set[Hashable] = set()
        self._graphs: dict[Hashable, _Graph] = {}
        if mode == "on":
            self._function = torch.compile(function, dynamic=False, fullgraph=True)

    def __call__(self, setting: Hashable, *inputs: Tensor) -> Any:
        """What the function gives."""
        if setting in self._graphs:
            return self._graphs[setting](*inputs)
        try:
            # A first call compiles kernels and finds the fastest, which a capture must not.
            if not self._captures or setting not in self._met:
                self._met.add(setting)
                return self._compiled(setting, *inputs)
            self._graphs[setting] = _Graph(self._function, setting, inputs)
            return self._graphs[setting](*inputs)
        except (RuntimeError, ImportError, OSError) as error:
            if self._function is self._plain and not self._captures:
                raise
            # The first line of a compiler's error often names only the compiler.
            told = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
            warnings.warn(
                f"decoding goes on uncompiled, and slower: {told[:200]}", RuntimeWarning, stacklevel=2
            )
            self._function, self._captures = self._plain, False
            return self._plain(setting, *inputs)

    def _compiled(self, setting: Hashable, *inputs: Tensor) -> Any:
        if self._function is self._plain:
            return self._plain(setting, *inputs)
        import torch._dynamo

        # One compilation for each size of the cache, and for each decoder of the process.
        with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096):
            return self._function(setting, *inputs)


class _Graph:
    """The kernels of a call, which read copies of its inputs."""

    def __init__(self, function: Function, setting: Hashable, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = [each.clone() for each in inputs]
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = function(setting, *self._inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs
