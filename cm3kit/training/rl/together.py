"""Work that several processes share: each does a part of a list, and all have the whole result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

Asked = TypeVar("Asked")
Made = TypeVar("Made")


def processes() -> tuple[int, int]:
    """Which process this is, and of how many."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def shared(asked: Sequence[Asked], make: Callable[[Sequence[Asked]], Sequence[Made]]) -> list[Made]:
    """What `make` gives for a list, a value for each, every process doing its share; every process has to call this."""
    rank, count = processes()
    if count == 1:
        return list(make(asked))
    found: list[Any] = [None] * count
    torch.distributed.all_gather_object(found, list(make(asked[rank::count])))
    return [found[number % count][number // count] for number in range(len(asked))]
