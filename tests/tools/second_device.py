"""A device that is not there: tensors that claim to lie on it, and a record of what comes back to the host.

Values are computed on the CPU, by the same kernels. What a real device refuses is refused: tensors of both in one
operation. What makes the host wait for it is recorded: scalars that are read, copies to the CPU, and shapes that depend
on values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FAR = torch.device("meta")
aten = torch.ops.aten
READS = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
)
TO_FAR = (aten._to_copy.default, aten.copy_.default)


class Far(torch.Tensor):
    """A tensor on the other device, and its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Far:
        found: Far = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=FAR
        )
        found.inner = inner
        return found

    def tolist(self) -> Any:
        """By a copy, as real ones do it."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Only within a `SecondDevice`."""
        raise AssertionError(f"{func} on another device, outside of it")


class SecondDevice(TorchDispatchMode):
    """Within it `FAR` is a device.

    Attributes:
        reads: numbers that each reading of the host has fetched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        flat, _ = tree_flatten((args, kwargs))
        far = any(isinstance(each, Far) for each in flat)
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        if not far and wanted != FAR:
            return func(*args, **kwargs)
        self._check(func, flat, args)
        found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if far and func is aten._to_copy.default and wanted is not None and wanted != FAR:
            self.reads.append(found.numel())
            return found.clone()
        if func is aten.copy_.default and not isinstance(args[0], Far):
            self.reads.append(found.numel())
            return args[0]
        if func._schema.is_mutable:
            return args[0]
        return tree_map(lambda each: Far(each) if isinstance(each, Tensor) else each, found)

    def _check(self, func: Any, flat: Sequence[Any], args: Sequence[Any]) -> None:
        near = [
            each for each in flat if isinstance(each, Tensor) and not isinstance(each, Far) and each.dim()
        ]
        if near and func not in TO_FAR:
            raise RuntimeError(f"{func}: tensors of {near[0].shape} on the CPU and others on the device")
        masks = func is aten.index.Tensor and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if func in READS or masks:
            self.reads.append(1)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Far) else value


class FarDenoiser:
    """A denoiser whose logits lie on the other device, and what was read from there after each of its passes."""

    def __init__(self, denoiser: Any, device: SecondDevice) -> None:
        self._denoiser, self._device = denoiser, device
        self.mask: int = denoiser.mask
        self.open_block: Callable[..., None] = denoiser.open_block
        self.passes: list[list[int]] = []

    def logits(self, ask: Any) -> list[Tensor]:
        """As the denoiser has them."""
        found = [Far(each) for each in self._denoiser.logits(ask)]
        self._device.reads = []
        self.passes.append(self._device.reads)
        return found
