"""dalle-mini's VQGAN in flax: taming's network as a msgpack of nested names, with channels-last convolutions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.installing import install
from cm3kit_tokenizers.vq.families.base import Mapped, Source, families
from cm3kit_tokenizers.vq.families.taming import convert_taming

ARRAY = 1  # flax.serialization's msgpack extension type of arrays
LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


@families("flax")
class Flax:
    """Names as in taming, with `down_0` for `down.0` and `kernel`, `scale`, `embedding` for `weight`."""

    title = "dalle-mini (flax)"

    def detect(self, source: Source) -> bool:
        """Detect by the names of the encoder's levels."""
        return "encoder.down_0.block_0.conv1.kernel" in source.tensors

    def convert(self, source: Source) -> Mapped:
        """Rename to taming's names, transpose kernels, and convert as taming's."""
        tensors = {_renamed(name): _turned(name, each) for name, each in source.tensors.items()}
        return convert_taming(replace(source, tensors=tensors), "vq")


def _renamed(name: str) -> str:
    name = re.sub(r"^(encoder\.down|decoder\.up)_(\d+)\.", r"\1.\2.", name)
    name = re.sub(r"^((?:encoder\.down|decoder\.up)\.\d+\.(?:block|attn))_(\d+)\.", r"\1.\2.", name)
    first, _, last = name.rpartition(".")
    return f"{first}.{LAST.get(last, last)}"


def _turned(name: str, tensor: Tensor) -> Tensor:
    """Height, width, in, out → out, in, height, width."""
    kernel = name.endswith(".kernel") and tensor.ndim == 4
    return tensor.permute(3, 2, 0, 1).contiguous() if kernel else tensor


def read_msgpack(path: Path) -> dict[str, Tensor]:
    """Tensors of a flax msgpack by dotted names; ModelError if it is damaged or msgpack is not installed."""
    try:
        import msgpack
    except ModuleNotFoundError as error:
        raise ModelError(
            f"flax checkpoints need the package msgpack; install it with: {install('flax')}.",
            code="missing_extra",
        ) from error
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_array, raw=False, strict_map_key=False)
        return dict(_flat(tree.get("params", tree)))
    except (ValueError, TypeError, AttributeError, KeyError, msgpack.UnpackException) as error:
        line = " ".join(str(error).split())[:120]
        raise ModelError(f"{path} is not a flax checkpoint ({line}).", code="bad_checkpoint") from error


def _array(code: int, data: bytes) -> Any:
    import msgpack

    if code != ARRAY:
        raise ValueError(f"extension type {code}")
    shape, kind, raw = msgpack.unpackb(data, raw=False)
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if kind == "bfloat16":
        return torch.from_numpy(np.frombuffer(raw, np.int16).copy()).view(torch.bfloat16).view(*shape)
    if kind not in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool"):
        raise ValueError(f"array of {kind!r}")
    return torch.from_numpy(np.frombuffer(raw, np.dtype(kind)).copy().reshape(shape))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, each in tree.items():
        if isinstance(each, Mapping):
            yield from _flat(each, f"{prefix}{name}.")
        elif isinstance(each, Tensor):
            yield prefix + name, each
