"""The device that models run on."""

from __future__ import annotations

import torch

from cm3kit_tokenizers.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device of that name, `auto` being the GPU if there is one; ConfigError (`bad_value`) if it is not there."""
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
