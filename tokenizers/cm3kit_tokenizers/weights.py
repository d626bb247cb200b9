"""Load safetensors files strictly, with errors that list all mismatches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cm3kit_tokenizers.disguise import disguised
from cm3kit_tokenizers.errors import ModelError

MAX_HEADER = 100 << 20


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file, from its header; ModelError if it is damaged."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= min(MAX_HEADER, path.stat().st_size):
                raise ValueError("its header is damaged")
            listed = json.loads(file.read(size))
        return {
            name: tuple(map(int, each["shape"])) for name, each in listed.items() if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = disguised(path) or f"cannot be opened: {error}"
        raise ModelError(f"{path} {why}.", code="bad_checkpoint") from error


def hold_sizes(
    settings: Path, sizes: Mapping[str, object], counts: Mapping[str, object], files: Sequence[Path]
) -> None:
    """Check settings against the headers of their weights, before memory of that size is allocated.

    Args:
        sizes: numbers that are a dimension of some tensor, such as a width.
        counts: numbers of parts with separate tensors, such as layers.

    Raises:
        ModelError: no tensor is that large, or there are fewer tensors (`bad_checkpoint`).
    """
    shapes = [shape for file in files for shape in read_shapes(file).values()]
    most = max((side for shape in shapes for side in shape), default=0)
    for names, limit, what in ((sizes, most, "is as large"), (counts, len(shapes), "fits so many parts")):
        for name, value in names.items():
            if isinstance(value, int) and value > limit:
                raise ModelError(
                    f"{settings}: {name} = {value:,}, and no tensor of {files[0].name} {what}.",
                    code="bad_checkpoint",
                )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, floating ones as fp32; ModelError if it is damaged or not finite."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        why = disguised(path) or f"cannot be opened: {error}"
        raise ModelError(f"{path} {why}.", code="bad_checkpoint") from error
    return checked(tensors, path)


def checked(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors, floating ones as fp32; ModelError if one is not finite."""
    out = {name: each.float() if each.is_floating_point() else each for name, each in tensors.items()}
    broken = [
        name for name, each in out.items() if each.is_floating_point() and not torch.isfinite(each).all()
    ]
    if broken:
        raise ModelError(f"{path}: {broken[0]} holds values that are not finite.", code="bad_checkpoint")
    return out


def load_exactly(module: nn.Module, path: Path, tied: tuple[str, ...] = ()) -> None:
    """Load all tensors of `path` into `module`; missing, extra or mis-shaped ones are an error.

    `tied` names tensors that may be absent because another one holds them.
    """
    place_exactly(module, read_tensors(path), path, tied)


def place_exactly(
    module: nn.Module, found: Mapping[str, Tensor], path: Path, tied: tuple[str, ...] = (), cause: str = ""
) -> None:
    """Load tensors from `path` into `module`; ModelError with grouped mismatches and the likely `cause`."""
    wanted = module.state_dict()
    missing = sorted(set(wanted) - set(found) - set(tied))
    extra = sorted(set(found) - set(wanted))
    shapes = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in sorted(set(found) & set(wanted))
        if found[name].shape != wanted[name].shape
    ]
    parts = [f"missing {_some(missing)}"] if missing else []
    parts += [f"unexpected {_some(extra)}"] if extra else []
    parts += [_some(shapes, "; ")] if shapes else []
    if parts:
        count = len(missing) + len(extra) + len(shapes)
        raise ModelError(
            f"{path} does not fit its configuration ({count} tensors): {' | '.join(parts)}."
            + (f" Likely cause: {cause}" if cause else ""),
            code="bad_checkpoint",
        )
    module.load_state_dict(dict(found), strict=False)


def _some(names: list[str], between: str = ", ", most: int = 5) -> str:
    rest = len(names) - most
    return between.join(names[:most]) + (f"{between}and {rest} more" if rest > 0 else "")
