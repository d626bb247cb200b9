"""Fill the masked positions of canvases in parallel, a few per pass (LLaDA, arXiv:2502.09992, sec. 2.4).

Every canvas has its own plan, random numbers and end. A batch has a fixed number of places, and canvases of one
padded length share it, so that neighbours change nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count, islice, zip_longest

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.board import Board
from cm3kit.decoders.diffusion.denoiser import Ask, Constraint, Denoiser, Metered
from cm3kit.decoders.diffusion.guidance import weight
from cm3kit.decoders.diffusion.job import Job, make_job
from cm3kit.decoders.diffusion.pass_logits import Part
from cm3kit.decoders.diffusion.plan import plan
from cm3kit.decoders.diffusion.samplers import Opener, make_modifiers, make_opener
from cm3kit.decoders.diffusion.settings import EXACT, DiffusionConfig
from cm3kit.decoders.diffusion.unmask_step import Writer
from cm3kit.decoders.transfer import workable
from cm3kit.types import Canvas, Commit, OnStep, Result, Step, ignore_step
from cm3kit_tokenizers.errors import Cm3kitError

# Lengths are rounded up to this, so that few shapes occur.
PADDING = 32


class Diffusion:
    """The decoder of masked-diffusion models.

    A row's result depends on the row and the settings, not on the other rows; nor on the batch size where products are
    steady (`kernels`), as on a CPU.

    Args:
        denoiser: the model.
        constrain: makes the constraint of a canvas; each is used for one filling.
        config: how to fill.
        eoss: id that ends the answer of a span that is not exact.
        image: ids of image codes, drawn as `config.image` says.
        ends: end ids that `config.eoser` ranks lower; by default `eoss` alone.

    Raises:
        ConfigError: an axis is unknown (`unknown_name`), or one of its options is (`bad_config`).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        constrain: Callable[[Canvas], Constraint],
        config: DiffusionConfig,
        *,
        eoss: int,
        image: range,
        ends: Collection[int] | None = None,
    ) -> None:
        self._denoiser, self._constrain, self._config, self._eoss = denoiser, constrain, config, eoss
        self._writer = Writer(config, denoiser.mask, image)
        remasker, self._editor = make_modifiers(config)
        self._opener = make_opener(config, (eoss,) if ends is None else ends, remasker)

    def fill(self, canvases: Sequence[Canvas], on_step: OnStep = ignore_step) -> list[Result]:
        """Fill every span of every canvas; a canvas without any costs no pass.

        Raises:
            ConfigError: a canvas is malformed (`bad_value`).
            ModelError: the model's scores are not finite (`bad_checkpoint`).
        """
        jobs = [self._job(row, canvas) for row, canvas in enumerate(canvases)]
        progress = _Progress(on_step, jobs, self._config)
        groups: dict[tuple[int, int, tuple[int, ...]], list[Job]] = {}
        for job in jobs:
            if not job.done:
                groups.setdefault(self._group(job), []).append(job)
        for (width, streams, _), group in sorted(groups.items()):
            _Batch(self._denoiser, self._writer, self._opener, self._config, group, width, streams).run(
                progress
            )
        return [job.result() for job in jobs]

    def stream(self, canvases: Iterator[Canvas]) -> Iterator[tuple[int, Result | Cm3kitError]]:
        """Fill canvases as they come, a batch after the other; see `types.Decoder`."""
        return in_batches(canvases, self._config.batch_size, self.fill)

    def _job(self, row: int, canvas: Canvas) -> Job:
        constraint = self._constrain(canvas)
        mask, eoss = self._denoiser.mask, self._eoss
        return make_job(row, canvas, constraint, mask, eoss, self._config, self._editor)

    def _group(self, job: Job) -> tuple[int, int, tuple[int, ...]]:
        width = -(-len(job.ids) // PADDING) * PADDING
        # What a cache holds belongs to one block of the whole batch.
        return width, 2 if job.guide else 1, job.blocks.key if self._config.cache != "none" else ()


def in_batches(
    canvases: Iterator[Canvas], size: int, fill: Callable[[Sequence[Canvas]], Sequence[Result]]
) -> Iterator[tuple[int, Result | Cm3kitError]]:
    """Numbers and results of canvases that are filled `size` at a time; an error is that of its canvas alone."""
    numbers = count()
    while batch := list(islice(canvases, size)):
        for result in _each(batch, fill):
            yield next(numbers), result


def _each(
    canvases: Sequence[Canvas], fill: Callable[[Sequence[Canvas]], Sequence[Result]]
) -> Sequence[Result | Cm3kitError]:
    try:
        return fill(canvases)
    except Cm3kitError as error:
        if len(canvases) == 1:
            return [error]
    return [result for each in canvases for result in _each([each], fill)]


class _Progress:
    """Numbers the steps and reports them."""

    def __init__(self, on_step: OnStep, jobs: Sequence[Job], config: DiffusionConfig) -> None:
        self._on_step, self._rows, self._index = on_step, len(jobs), 0
        ends = [0] * config.batch_size
        for job in jobs:
            ends[ends.index(min(ends))] += sum(map(len, plan(job.canvas, config)))
        self._total = max(ends)

    def report(self, jobs: Sequence[Job]) -> None:
        """Report what a pass has changed; where it changed one row twice, as two steps of one index."""
        news = {job.row: job.news() for job in jobs}
        total = max(self._total, self._index + 1)
        for commits in zip_longest(*news.values()):
            by_row: list[Commit | None] = [None] * self._rows
            for row, commit in zip(news, commits, strict=True):
                by_row[row] = commit
            self._on_step(Step(self._index, total, (None,) * self._rows, tuple(by_row)))
        self._index += 1


class _Batch:
    """Canvases of one padded length in a fixed number of places; a free place takes the next one.

    Guided ones take two rows of a pass each, b and b + places. With a cache all go from block to block together.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        writer: Writer,
        opener: Opener,
        config: DiffusionConfig,
        jobs: Sequence[Job],
        width: int,
        streams: int,
    ) -> None:
        self._denoiser, self._writer, self._opener, self._config = denoiser, writer, opener, config
        self._waiting = deque(jobs)
        self._places: list[Job | None] = [None] * config.batch_size
        self._together = config.cache != "none"
        self._streams = streams
        self._ids_BT = torch.zeros(config.batch_size * streams, width, dtype=torch.long)

    def run(self, progress: _Progress) -> None:
        """Fill every canvas."""
        while self._admit():
            self._enter_blocks()
            self._pass()
            progress.report(self._jobs)

    @property
    def _jobs(self) -> list[Job]:
        return [job for job in self._places if job is not None]

    def _admit(self) -> bool:
        self._places = [None if job is None or job.done else job for job in self._places]
        if not (self._together and self._jobs):
            for place, job in enumerate(self._places):
                if job is None and self._waiting:
                    self._places[place] = self._waiting.popleft()
        return bool(self._jobs)

    def _enter_blocks(self) -> None:
        if not self._together:
            for job in self._jobs:
                if job.idle:
                    job.enter(job.blocks.around(job.open[0]), self._opener)
        elif all(job.idle for job in self._jobs):
            window = min(job.blocks.around(job.open[0]) for job in self._jobs if job.open)
            for job in self._jobs:
                job.enter(window, self._opener)
            self._denoiser.open_block(self._ids(), self._lengths(), window)
            self._count([len(job.slots) if job else 0 for job in self._places] * self._streams, opening=True)

    def _ids(self) -> Tensor:
        for place, job in enumerate(self._places):
            for stream in range(self._streams if job else 0):
                ids = (job.guide if stream else job.ids) if job else []
                self._ids_BT[stream * len(self._places) + place, : len(ids)] = torch.tensor(ids)
        return self._ids_BT

    def _lengths(self) -> tuple[int, ...]:
        return tuple(len(job.ids) if job else 0 for job in self._places) * self._streams

    def _pass(self) -> None:
        """One pass of the model, and the changes that follow in each row."""
        wanted = [job.want() if job else [] for job in self._places]
        scored = [job.scored(slots) if job else [] for job, slots in zip(self._places, wanted, strict=True)]
        if not any(scored):
            return
        weights, guides = list[float](), list[list[int]]()
        if self._streams == 2:  # a weight of 1 guides nothing, and costs no second pass
            weights = [self._weight(job) for job in self._places]
            guides = [slots if each != 1 else [] for slots, each in zip(scored, weights, strict=True)]
        logits = self._ask([*scored, *guides])
        self._count([len(slots) for slots in (*scored, *guides)])
        boards = []
        for place, (job, slots) in enumerate(zip(self._places, scored, strict=True)):
            if job is not None and slots:
                guided = bool(guides and guides[place])
                guide_MV = logits[len(self._places) + place] if guided else None
                part = Part(logits[place], guide_MV, weights[place] if guided else 1.0)
                boards.append(Board(job, wanted[place], slots, part, 1 + guided))
        self._writer.step(boards)

    def _weight(self, job: Job | None) -> float:
        if job is None or job.phase is None:
            return 1.0
        return weight(self._config, job.time, min(job.phase.step, job.phase.steps), job.phase.steps)

    def _ask(self, wanted: Sequence[Sequence[int]]) -> list[Tensor]:
        slots = tuple(torch.tensor(each, dtype=torch.long) for each in wanted)
        times = tuple(self._time(job) if job else 0.0 for job in self._places) * self._streams
        block = self._jobs[0].window if self._together else None
        ask = Ask(self._ids(), self._lengths(), slots, times, block)
        return [workable(each) for each in self._denoiser.logits(ask)]

    def _time(self, job: Job) -> float:
        # Models trained block by block take the noise level of the block, as everything before it is clean.
        return job.block_time if self._config.cache in EXACT else job.time

    def _count(self, rows: Sequence[int], opening: bool = False) -> None:
        """Count what a call cost each canvas, of whose rows so many slots were asked."""
        metered = isinstance(self._denoiser, Metered)
        if opening and not metered:
            return
        lengths = self._lengths()
        computed = self._denoiser.computed if isinstance(self._denoiser, Metered) else lengths
        for index, (places, length) in enumerate(zip(computed, lengths, strict=True)):
            job, asked = self._places[index % len(self._places)], rows[index]
            if job is not None and asked:
                job.cost.add(places, length)
                job.cost.head_rows += 0 if opening else asked
