"""Batches drawn ahead of time by other processes.

What a step draws depends on (seed, step) alone, so the batch does not depend on which process draws it, or when.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from cm3kit.rng import generator
from cm3kit.training.task import LoopSettings, Task, TaskInOrder

AHEAD = 4  # batches that each process may be ahead


def draw(task: Task, settings: LoopSettings, step: int) -> tuple[Generator, Any]:
    """The batch of a step, over all processes, and the generator that has drawn it."""
    rng = generator(settings.seed, step, 0)
    if isinstance(task, TaskInOrder):
        task.seek(step, settings.batch_size, 0, 1)
    return rng, task.batch(rng, settings.batch_size)


class Batches:
    """Batches step by step: drawn on the spot, or with `settings.workers` by so many processes, into pinned memory."""

    def __init__(self, task: Task, settings: LoopSettings) -> None:
        self._task, self._settings = task, settings
        self._next = -1
        self._coming: Iterator[tuple[Tensor, Any]] = iter(())

    def take(self, step: int) -> tuple[Generator, Any]:
        """The generator and the batch of a step; a step out of order restarts the processes."""
        if not self._settings.workers:
            return draw(self._task, self._settings, step)
        if step != self._next:
            self._coming = self._from(step)
        self._next = step + 1
        state, batch = next(self._coming)
        rng = Generator()
        rng.set_state(state)
        return rng, batch

    def _from(self, step: int) -> Iterator[tuple[Tensor, Any]]:
        loader = DataLoader(
            _Drawn(self._task, self._settings),
            batch_size=None,
            sampler=range(step, max(step + 1, self._settings.steps)),
            num_workers=self._settings.workers,
            prefetch_factor=AHEAD,
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)


class _Drawn(Dataset[tuple[Tensor, Any]]):
    def __init__(self, task: Task, settings: LoopSettings) -> None:
        self._task, self._settings = task, settings

    def __getitem__(self, step: int) -> tuple[Tensor, Any]:
        rng, batch = draw(self._task, self._settings, step)
        return rng.get_state(), batch
