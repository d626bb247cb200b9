"""What this process may compute on: the device of a name, and its share of the processors."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cm3kit_tokenizers.errors import ConfigError

# Whoever only counts processors does not wait for torch.
if TYPE_CHECKING:
    import torch


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device(name: str) -> torch.device:
    """The device of that name, `auto` being the GPU if there is one; ConfigError (`bad_value`) if it is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0][:120]
        raise ConfigError(
            f"device {name!r} cannot be used: {line}; use auto or cpu.", code="bad_value"
        ) from error
    return device
