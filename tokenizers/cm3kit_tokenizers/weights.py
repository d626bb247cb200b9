"""Open safetensors files strictly, with errors that name what does not fit."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cm3kit_tokenizers.errors import ModelError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file in fp32 where they are floating; ModelError if it is broken or not finite."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be opened: {error}.", code="bad_checkpoint") from error
    out = {name: each.float() if each.is_floating_point() else each for name, each in tensors.items()}
    broken = [
        name for name, each in out.items() if each.is_floating_point() and not torch.isfinite(each).all()
    ]
    if broken:
        raise ModelError(f"{path}: {broken[0]} holds values that are not finite.", code="bad_checkpoint")
    return out


def load_exactly(module: nn.Module, path: Path, tied: tuple[str, ...] = ()) -> None:
    """Load every tensor of `path` into `module`, and refuse missing, extra or mis-shaped ones.

    `tied` names tensors that may be absent because another one holds them.
    """
    found, wanted = read_tensors(path), module.state_dict()
    missing = sorted(set(wanted) - set(found) - set(tied))
    extra = sorted(set(found) - set(wanted))
    shapes = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in sorted(set(found) & set(wanted))
        if found[name].shape != wanted[name].shape
    ]
    parts = [f"missing {', '.join(missing[:5])}"] if missing else []
    parts += [f"unexpected {', '.join(extra[:5])}"] if extra else []
    parts += [f"{'; '.join(shapes[:5])}"] if shapes else []
    if parts:
        count = len(missing) + len(extra) + len(shapes)
        raise ModelError(
            f"{path} does not fit its configuration ({count} tensors): {' | '.join(parts)}.",
            code="bad_checkpoint",
        )
    module.load_state_dict(found, strict=False)
