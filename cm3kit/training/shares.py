"""A batch cut into shares, for processes and for micro-batches."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cm3kit.training.figures import Mean as Mean
from cm3kit.training.figures import pooled as pooled
from cm3kit.training.task import Task, TaskInShares
from cm3kit_tokenizers.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Share:
    """Some rows of a batch: how many of all (0 … 1), and the factor with which the losses of all shares add up."""

    batch: Any
    part: float
    factor: float


def cut(task: Task, batch: Any, rows: int, count: int) -> list[Share]:
    """`count` shares of adjacent rows, of sizes as equal as possible; ConfigError if there are fewer rows.

    A task that is no `TaskInShares` has a loss that is a mean over rows, and a batch of tensors, alone or in a tuple,
    list or dict, whose first dimension is the rows where it is as long.
    """
    if count > rows:
        raise ConfigError(
            f"loop.batch_size = {rows}: it has to be shared by {count} processes and micro-batches;"
            " raise it, or lower loop.accumulate or the number of processes.",
            code="bad_config",
        )
    if count == 1:
        return [Share(batch, 1.0, 1.0)]
    bounds = [rows * number // count for number in range(count + 1)]
    shares = []
    for start, stop in itertools.pairwise(bounds):
        part, place = (stop - start) / rows, slice(start, stop)
        if isinstance(task, TaskInShares):
            shares.append(Share(task.share(batch, place), part, 1.0))
        else:
            shares.append(Share(_rows(batch, rows, place), part, part))
    return shares


def _rows(batch: Any, rows: int, place: slice) -> Any:
    if isinstance(batch, Tensor):
        return batch[place] if batch.ndim and len(batch) == rows else batch
    if isinstance(batch, Mapping):
        return {name: _rows(each, rows, place) for name, each in batch.items()}
    if isinstance(batch, tuple | list):
        cut_up = [_rows(each, rows, place) for each in batch]
        named = hasattr(batch, "_fields")  # a NamedTuple takes its values one by one
        return type(batch)(*cut_up) if named else type(batch)(cut_up)
    return batch
