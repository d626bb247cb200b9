"""Ids that a row may come to write, guessed cheaply, for one pass of the model to verify several at once.

What is written does not depend on them (`batch`); only how many passes it takes does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cm3kit.decoders.causal.jobs import Job
from cm3kit.decoders.diffusion.denoiser import Ask, Denoiser
from cm3kit.decoders.settings import DecodeConfig, Sampling
from cm3kit.decoders.token_sampling import draw

LONGEST, SHORTEST = 4, 2
"""Ids of the end of a row that are looked up in it, the longest match first."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A row on its way.

    Attributes:
        ids: its prompt and all that was written, the last one too, which the model has not read yet.
        most: no more ids than these are of use.
    """

    job: Job
    ids: Sequence[int]
    most: int


class Drafter(Protocol):
    """Guesses how rows go on.

    Attributes:
        most: ids of its longest draft.
    """

    most: int

    def propose(self, rows: Mapping[int, Unfinished]) -> Mapping[int, Sequence[int]]:
        """Ids behind the last one of each row, by place; none where it has no guess."""


class Lookup:
    """What followed the last time that the row's last ids stood in it (prompt lookup decoding, Saxena 2023)."""

    most = 4  # a pass over 5 ids costs about 1.8 steps, one over 9 about 3 (docs/sampling.md)

    def propose(self, rows: Mapping[int, Unfinished]) -> Mapping[int, Sequence[int]]:
        """See `Drafter`."""
        return {place: look_up(row.ids, row.most) for place, row in rows.items()}


def look_up(ids: Sequence[int], most: int) -> Sequence[int]:
    """At most so many ids behind the newest earlier place of the longest end of `ids` that has one."""
    for size in range(min(LONGEST, len(ids) - 1), SHORTEST - 1, -1):
        end, last = list(ids[-size:]), ids[-1]
        for at in range(len(ids) - 2, size - 2, -1):
            if ids[at] == last and list(ids[at + 1 - size : at + 1]) == end:
                return ids[at + 1 : at + 1 + most]
    return ()


class BlockDrafter:
    """A decoder that writes in blocks behind the page guesses the next block in one pass, all its ids at once.

    Each id is drawn by the number in [0, 1) that verification will draw by, so that where both models agree the draft
    is what will be written.

    Args:
        make: makes a denoiser with a cache of its own, one for each place.
        size: positions of a block.
        config: how the causal decoder draws.
    """

    def __init__(self, make: Callable[[], Denoiser], size: int, config: DecodeConfig) -> None:
        self.most = size
        self._make, self._config = make, config
        self._denoisers: dict[int, Denoiser] = {}

    def propose(self, rows: Mapping[int, Unfinished]) -> Mapping[int, Sequence[int]]:
        """See `Drafter`."""
        return {place: self._block(place, row) for place, row in rows.items()}

    def _block(self, place: int, row: Unfinished) -> Sequence[int]:
        if place not in self._denoisers:
            self._denoisers[place] = self._make()
        denoiser, start, job = self._denoisers[place], len(row.ids), row.job
        # As long from first to last, so that the cache knows the row again.
        ids_1T = torch.full((1, max(job.length, start + row.most)), denoiser.mask)
        ids_1T[0, :start] = torch.tensor(row.ids)
        slots = torch.arange(start, start + row.most)
        (logits_MV,) = denoiser.logits(
            Ask(ids_1T, (ids_1T.shape[1],), (slots,), (1.0,), (start, start + row.most))
        )
        return self._drawn(job, logits_MV)

    def _drawn(self, job: Job, logits_MV: Tensor) -> list[int]:
        """Ids up to the first that ends the answer."""
        how = self._config.image if job.run.image else self._config.text
        run = job.run.fork()
        draft: list[int] = []
        for step, (logits_V, uniform) in enumerate(zip(logits_MV, job.uniforms[job.drawn :], strict=False)):
            allowed_V = run.allowed(job.left - step) if run is not None else None
            id = _draw(logits_V, allowed_V, uniform, how)
            if id == job.run.end or id in job.run.others:
                break
            draft.append(id)
            if run is not None:
                run.take(id)
        return draft


def _draw(logits_V: Tensor, allowed_V: Tensor | None, uniform: float, how: Sampling) -> int:
    scores_V = logits_V if allowed_V is None else logits_V.masked_fill(~allowed_V, -torch.inf)
    numbers = (torch.tensor([each], dtype=torch.float64) for each in (uniform, how.temperature, how.top_p))
    uniform_1, temperature_1, top_p_1 = numbers
    return int(draw(scores_V[None], uniform_1, temperature_1, torch.tensor([how.top_k]), top_p_1))
