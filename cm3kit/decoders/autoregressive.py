"""Fill a canvas from left to right, on a static key-value cache.

One prefill serves all blanks of a row, as every fill is appended (InCoder, arXiv:2204.05999, sec. 2.2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cm3kit.decoders.cache import Cache
from cm3kit.decoders.engine import Engine
from cm3kit.decoders.fallback import make_engine
from cm3kit.decoders.grammar import Grammar
from cm3kit.decoders.guidance import combine, streams
from cm3kit.decoders.jobs import Job, make_jobs
from cm3kit.decoders.pick import draw, penalize
from cm3kit.decoders.settings import DecodeConfig
from cm3kit.types import Canvas, Fill, Row, Step, Watch, unwatched
from cm3kit_tokenizers.errors import Cm3kitError

Report = Callable[[Sequence[Job | None], Sequence[int | None]], None]


class Autoregressive:
    """The decoder of causal models.

    A row's result depends on the row and the settings, not on the other rows; nor on the batch size where products
    are steady (`kernels`), which are those of fp32 on a CPU.

    Args:
        backbone: a causal language model of transformers; its weights are read once, here.
        grammar: which ids may follow which.
        config: how to sample.
    """

    def __init__(self, backbone: PreTrainedModel, grammar: Grammar, config: DecodeConfig) -> None:
        self._grammar, self._config, self._backbone = grammar, config, backbone
        self._engines: dict[int, Engine] = {}

    def fill(self, canvas: Canvas, watch: Watch = unwatched) -> list[tuple[Fill, ...]]:
        """Return, for each row, what was written into each of its blanks.

        Raises:
            ConfigError: a row does not fit the window (`too_long`), or cannot be closed in its budget.
        """
        counts = [streams(self._config, len(row.guides)) for row in canvas.rows]
        window = int(self._backbone.config.max_position_embeddings)
        jobs = list(make_jobs(canvas, self._grammar, counts, self._config.parallel, window))
        progress = _Progress(watch, len(canvas.rows), _steps(jobs, self._config.batch_size))
        for count in sorted(set(counts)):
            mine = [job for job in jobs if len(job.prompts) == count]
            if mine:
                waiting = deque(job for job in mine if not job.done)
                capacity = max(job.length for job in mine) + 1
                for _ in self._batch(waiting, capacity, count).run(progress.report):
                    pass
        filled: list[list[Fill]] = [[] for _ in canvas.rows]
        for job in jobs:
            filled[job.row] += job.fills
        return [tuple(fills) for fills in filled]

    def flow(
        self, pull: Callable[[], Row | None], count: int, window: int
    ) -> Iterator[tuple[int, tuple[Fill, ...] | Cm3kitError]]:
        """Fill rows as they come, a free place taking the next one.

        Args:
            pull: gives the next row, or None while there is none; asked again whenever a row is finished.
            count: streams of every row (`guidance.streams`).
            window: most positions of a row.

        Yields:
            The number of a row, in the order of pulling from 0, and what was written into its blanks, or why
            it cannot be filled. It ends when no row is left, or to be had.
        """
        source = _Source(pull, self._grammar, count, self._config.parallel, window)
        batch = self._batch(source, window + 1, count)
        while True:
            for job in batch.run(lambda jobs, ids: None):
                source.finish(job)
                yield from source.drain()
            if not source.ready:
                return
            yield from source.drain()

    def _batch(self, waiting: deque[Job] | _Source, capacity: int, count: int) -> _Batch:
        return _Batch(self._engine(count), self._grammar, self._config, waiting, capacity, count)

    def _engine(self, count: int) -> Engine:
        rows = count * self._config.batch_size
        if rows not in self._engines:
            self._engines[rows] = make_engine(
                self._backbone, len(self._grammar), self._config.precision, rows
            )
        return self._engines[rows]


@dataclass(slots=True)
class _Progress:
    watch: Watch
    rows: int
    total: int
    index: int = 0

    def report(self, jobs: Sequence[Job | None], ids: Sequence[int | None]) -> None:
        written: list[int | None] = [None] * self.rows
        for job, id in zip(jobs, ids, strict=True):
            if job is not None and id is not None:
                written[job.row] = id
        self.watch(Step(self.index, self.total, tuple(written)))
        self.index += 1


class _Source:
    """Rows on demand as jobs, and the rows whose jobs are all done."""

    def __init__(
        self, pull: Callable[[], Row | None], grammar: Grammar, count: int, parallel: bool, window: int
    ) -> None:
        self._pull, self._grammar, self._count = pull, grammar, count
        self._parallel, self._window = parallel, window
        self._waiting: deque[Job] = deque()
        self._open: dict[int, list[Job]] = {}
        self._pulled = 0
        self.ready: deque[tuple[int, tuple[Fill, ...] | Cm3kitError]] = deque()

    def popleft(self) -> Job:
        """The next job; IndexError while there is none."""
        while not self._waiting:
            if (row := self._pull()) is None:
                raise IndexError
            self._open_row(row)
        return self._waiting.popleft()

    def _open_row(self, row: Row) -> None:
        number, self._pulled = self._pulled, self._pulled + 1
        try:
            jobs = list(make_jobs(Canvas((row,)), self._grammar, [self._count], self._parallel, self._window))
        except Cm3kitError as error:
            self.ready.append((number, error))
            return
        for job in jobs:
            job.row = number
        self._open[number] = jobs
        self._waiting += [job for job in jobs if not job.done]
        self._close(number)

    def finish(self, job: Job) -> None:
        """Take note that a job is done."""
        self._close(job.row)

    def _close(self, number: int) -> None:
        if all(job.done for job in self._open[number]):
            jobs = self._open.pop(number)
            self.ready.append((number, tuple(fill for job in jobs for fill in job.fills)))

    def drain(self) -> Iterator[tuple[int, tuple[Fill, ...] | Cm3kitError]]:
        """Rows that are done, each once."""
        while self.ready:
            yield self.ready.popleft()


@dataclass(slots=True)
class _Shared:
    """A prompt that stands at the start of a slot, and the logits after it."""

    ids: tuple[int, ...]
    logits_V: Tensor


class _Batch:
    """Rows of one stream count in a fixed number of places; a free place takes the next row.

    Place b of stream k is slot k * places + b of the cache. Places without a row compute along, so
    that every step has the same shape.
    """

    def __init__(
        self,
        engine: Engine,
        grammar: Grammar,
        config: DecodeConfig,
        waiting: deque[Job] | _Source,
        capacity: int,
        count: int,
    ) -> None:
        places, vocab = config.batch_size, len(grammar)
        self.engine, self.grammar, self.config, self.count = engine, grammar, config, count
        self.waiting = waiting
        self.places: list[Job | None] = [None] * places
        self.cache: Cache = engine.open(places * count, capacity)
        self.positions = [0] * (places * count)
        self.shared: dict[int, _Shared] = {}
        device = self.cache.layers[0].device
        self.logits_SV = torch.zeros(places * count, vocab, device=device)
        self.masks: list[Tensor] = [torch.ones(vocab, dtype=torch.bool)] * places
        self.mask_BV = torch.ones(places, vocab, dtype=torch.bool, device=device)
        self.seen_BV = torch.zeros(places, vocab, dtype=torch.bool, device=device)
        self.bias_V = torch.zeros(vocab, device=device)
        # Sentinels are allowed only where one ends a run.
        ends = [grammar.vocab.eoss, grammar.vocab.eod, *grammar.vocab.sentinel_range]
        self.bias_V[ends] = config.eoss_bias

    def run(self, report: Report) -> Iterator[Job]:
        """Fill every job, and yield each when it is done."""
        self._admit()
        while any(self.places):
            sampled = self._sample()
            ids = [self._advance(place, choice) for place, choice in enumerate(sampled)]
            report(self.places, [choice and choice[0] for choice in sampled])
            if any(job is not None and not job.done for job in self.places):
                self._step(ids)
            for job in self.places:
                if job is not None and job.done:
                    yield job
            self._admit()

    def _admit(self) -> None:
        for place, job in enumerate(self.places):
            if job is not None and job.done:
                self.places[place] = None
            if self.places[place] is None and (new := self._next()) is not None:
                self.places[place] = new
                self.seen_BV[place] = False
                for stream, prompt in enumerate(new.prompts):
                    self._prefill(stream * len(self.places) + place, prompt)

    def _next(self) -> Job | None:
        try:
            return self.waiting.popleft()
        except IndexError:
            return None

    def _prefill(self, slot: int, prompt: tuple[int, ...]) -> None:
        source = next((at for at, shared in self.shared.items() if shared.ids == prompt), None)
        if source is None:
            self.shared[slot] = _Shared(prompt, self.engine.prefill(self.cache, slot, prompt))
        elif source != slot:
            self.cache.copy(source, slot, len(prompt))
            self.shared[slot] = self.shared[source]
        self.logits_SV[slot] = self.shared[slot].logits_V
        self.positions[slot] = len(prompt)

    def _sample(self) -> list[tuple[int, float] | None]:
        """For each place an id and its log-probability, or None where an id is forced or no row is."""
        asking = [job if job and not job.forced else None for job in self.places]
        if not any(asking):
            return [None] * len(asking)
        for place, job in enumerate(asking):
            if job is not None:
                self._show(place, self.grammar.allowed(job.state, job.left))
        logits_KBV = self.logits_SV.view(self.count, len(asking), -1)
        scores_BV = combine(logits_KBV, self.mask_BV, self.config)
        if self.config.eoss_bias:
            scores_BV = scores_BV + self.bias_V
        if self.config.repetition_penalty != 1:
            scores_BV = penalize(scores_BV, self.seen_BV, self.config.repetition_penalty)
        ids_B = self._draw(scores_BV, asking)
        chosen_B = logits_KBV[0].log_softmax(-1).gather(-1, ids_B[:, None])[:, 0]
        choices = zip(asking, ids_B.tolist(), chosen_B.tolist(), strict=True)
        return [(id, logprob) if job is not None else None for job, id, logprob in choices]

    def _show(self, place: int, mask_V: Tensor) -> None:
        # Masks are cached by the grammar, and most steps in a picture or a word keep theirs.
        if mask_V is not self.masks[place]:
            self.masks[place] = mask_V
            self.mask_BV[place] = mask_V

    def _draw(self, scores_BV: Tensor, asking: Sequence[Job | None]) -> Tensor:
        config, device = self.config, scores_BV.device
        ways = [config.image if job and job.state.image else config.text for job in asking]
        heat_B = torch.tensor([way.temperature for way in ways], dtype=torch.float64, device=device)
        top_k_B = torch.tensor([way.top_k for way in ways], device=device)
        top_p_B = torch.tensor([way.top_p for way in ways], dtype=torch.float64, device=device)
        dice = [job.next_uniform() if job else 0.0 for job in asking]
        uniforms_B = torch.tensor(dice, dtype=torch.float64, device=device)
        return draw(scores_BV, uniforms_B, heat_B, top_k_B, top_p_B)

    def _advance(self, place: int, choice: tuple[int, float] | None) -> int:
        """Take a choice down, and return the id that goes into the model."""
        job = self.places[place]
        if job is None:
            return self.grammar.vocab.pad
        if choice is None:
            return self._force(job)
        id, filled = choice[0], len(job.fills)
        job.take(id, choice[1])
        if id in self.grammar.vocab.text:
            self.seen_BV[place, id] = True
        if len(job.fills) > filled:
            self.seen_BV[place] = False
            if job.forced and id == job.forced[0]:
                self._force(job)
        return id

    def _force(self, job: Job) -> int:
        id = job.forced.popleft()
        if not job.forced:
            job.begin()
        return id

    def _step(self, ids: list[int]) -> None:
        active = [job is not None and not job.done for job in self.places] * self.count
        write = self.cache.at(self.positions, active)
        ids_S = torch.tensor(ids * self.count, device=write.rows.device)
        self.logits_SV = self.engine.step(self.cache, write, ids_S)
        self.positions = [at + on for at, on in zip(self.positions, active, strict=True)]


def _steps(jobs: Sequence[Job], places: int) -> int:
    """Steps that filling takes if no run ends before its budget."""
    ends = [0] * places
    for job in jobs:
        first = ends.index(min(ends))
        ends[first] += job.length - max(map(len, job.prompts))
    return max(ends, default=0)
