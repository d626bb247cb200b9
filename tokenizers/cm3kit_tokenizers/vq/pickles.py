"""Read tensors from untrusted pickles without executing code in them.

This is the only place where pickles are opened, and only for conversion. torch's restricted unpickler (weights_only)
creates plain data and tensors; class names of lightning, omegaconf and similar packages in old checkpoints become
empty classes of ours. Any other name is refused before any object is created.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cm3kit_tokenizers.disguise import disguised
from cm3kit_tokenizers.errors import ModelError

INERT = (
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "omegaconf.",
    "argparse.",
    "typing.",
    "pathlib.",
)
MAPPINGS = ("AttributeDict", "DictConfig")
PLAIN = ("bool", "dict", "float", "int", "list", "set", "str", "tuple")  # factories of defaultdicts


class Inert:
    """Placeholder of an object of an unneeded class; stores its state, and has no behaviour."""

    def __new__(cls, *args: object, **more: object) -> Inert:
        """Accept any arguments."""
        return super().__new__(cls)

    def __init__(self, *args: object, **more: object) -> None:
        """Accept any arguments."""


def read_pickle(path: Path) -> Any:
    """Read a file of `torch.save`: plain data and tensors, on the CPU.

    Raises:
        ModelError: the file names a function or class that is not on the list, or is damaged (`bad_checkpoint`).
    """
    try:
        zipped = _is_zip(path)
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) if zipped else _USUAL
        for name in names:
            if _stand_in(name) is None:
                raise ModelError(
                    f"{path} is refused: it names {name!r}, which could run code when opened; nothing was run."
                    " Get the weights as safetensors, or from a trusted source.",
                    code="bad_checkpoint",
                )
        allowed = [(_stand_in(name), name) for name in names]
        dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name.endswith("DType")]
        with torch.serialization.safe_globals([*allowed, *dtypes]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats and protocols
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except ModelError:
        raise
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist.", code="no_file") from error
    # Any error of the unpickler on a malformed file; none of the file's names has been called.
    except Exception as error:
        if what := disguised(path):
            raise ModelError(f"{path} {what}.", code="bad_checkpoint") from error
        line = " ".join(str(error).split())
        unsafe = "Unsupported" in line or "weights_only" in line.lower()
        why = "it holds more than tensors and plain data" if unsafe else f"it cannot be read ({line[:120]})"
        raise ModelError(f"{path} is refused: {why}; nothing was run.", code="bad_checkpoint") from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _stand_in(name: str) -> Any:
    """The replacement of a name, or None if it is not allowed."""
    if name in _NUMPY:
        return _NUMPY[name]
    first, _, last = name.rpartition(".")
    if name == "collections.defaultdict":
        return _mapping
    if name.startswith(INERT) and last in MAPPINGS:
        return OrderedDict
    inert = name.startswith(INERT) or (first in ("builtins", "__builtin__") and last in PLAIN)
    return type(last, (Inert,), {}) if inert else None


def _mapping(*factory: object) -> OrderedDict[Any, Any]:
    """Replaces a defaultdict; its factory is ignored."""
    return OrderedDict()


def _numpy_names() -> dict[str, Any]:
    """Numpy's constructors of scalars and arrays, under the names of old and new versions."""
    from numpy._core import multiarray

    found: dict[str, Any] = {"numpy.dtype": np.dtype, "numpy.ndarray": np.ndarray}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found[f"{module}.scalar"] = multiarray.scalar
        found[f"{module}._reconstruct"] = multiarray._reconstruct
    return found


_NUMPY = _numpy_names()
# Files from before torch 1.6 cannot be scanned for names first: these are allowed, any other one is refused.
_USUAL = sorted(
    [
        *_NUMPY,
        *(f"builtins.{name}" for name in PLAIN),
        "collections.defaultdict",
        "argparse.Namespace",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "omegaconf.dictconfig.DictConfig",
    ]
)
