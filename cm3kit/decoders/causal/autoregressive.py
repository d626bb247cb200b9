"""Fill canvases from left to right, on a static key-value cache.

One prefill serves all spans of a row, as every fill is appended (InCoder, arXiv:2204.05999, sec. 2.2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cm3kit.decoders.cache import Cache
from cm3kit.decoders.causal.guidance import combine, streams
from cm3kit.decoders.causal.jobs import Job, make_jobs
from cm3kit.decoders.causal.scoring import score_causal
from cm3kit.decoders.causal.source import Source, result_of
from cm3kit.decoders.diffusion.cached_forward import Passes
from cm3kit.decoders.fast_llama import Engine, LeanEngine, Prompt
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.hf_engine import make_engine
from cm3kit.decoders.precision import auto_precision
from cm3kit.decoders.scoring import Scored
from cm3kit.decoders.settings import DecodeConfig
from cm3kit.decoders.token_sampling import draw, penalize
from cm3kit.types import Canvas, OnStep, Result, Step, ignore_step
from cm3kit_tokenizers.errors import Cm3kitError

Report = Callable[[Sequence[Job | None], Sequence[int | None]], None]


class Autoregressive:
    """The decoder of causal models.

    A row's result depends on the row and the settings, not on the other rows; nor on the batch size where products
    are steady (`kernels`), which on a CPU are all but those of int8.

    Args:
        backbone: a causal language model of transformers; its weights are read once, here.
        grammar: which ids may follow which.
        config: how to sample.
        window: most positions of a row of a stream; the model's unless given.
    """

    def __init__(
        self, backbone: PreTrainedModel, grammar: Grammar, config: DecodeConfig, window: int | None = None
    ) -> None:
        if config.precision == "auto":
            config = config.model_copy(update={"precision": auto_precision(backbone, many=False)})
        self._grammar, self._config, self._backbone = grammar, config, backbone
        self._most = int(backbone.config.max_position_embeddings)
        self._window = min(window or self._most, self._most)
        self._engines: dict[int, Engine] = {}
        self._passes: Passes | None = None

    def fill(self, canvases: Sequence[Canvas], on_step: OnStep = ignore_step) -> list[Result]:
        """The result of each canvas.

        Raises:
            ConfigError: a canvas does not fit the window (`too_long`), or cannot be closed in its budget.
        """
        jobs = [job for row, canvas in enumerate(canvases) for job in self._jobs(row, canvas, self._most)]
        progress = _Progress(on_step, len(canvases), _steps(jobs, self._config.batch_size))
        for count in sorted({len(job.prompts) for job in jobs}):
            mine = [job for job in jobs if len(job.prompts) == count]
            waiting = deque(job for job in mine if not job.done)
            capacity = max(job.length for job in mine) + 1
            for _ in self._batch(waiting, capacity, count).run(progress.report):
                pass
        of_row: list[list[Job]] = [[] for _ in canvases]
        for job in jobs:
            of_row[job.row].append(job)
        return [result_of(canvas, mine) for canvas, mine in zip(canvases, of_row, strict=True)]

    def stream(self, canvases: Iterator[Canvas]) -> Iterator[tuple[int, Result | Cm3kitError]]:
        """Fill canvases as they come, a free place taking the next one; see `types.Decoder`.

        Canvases of as many streams as the first one are filled together, and then those of others.
        """
        source = Source(canvases, self._jobs, self._window)
        while (count := source.next_count()) is not None:
            batch = self._batch(source, self._window + 1, count)
            while True:
                for job in batch.run(lambda jobs, ids: None):
                    source.finish(job)
                    yield from source.drain()
                if not source.ready:
                    break
                yield from source.drain()
        yield from source.drain()

    def score(self, canvases: Sequence[Canvas]) -> list[Scored]:
        """How likely the answers of canvases are: those that `fill` would report, had it written them.

        Raises:
            ConfigError: a canvas does not fit the window (`too_long`), or an answer its span (`bad_value`).
        """
        if self._passes is None:
            engine = self._engine(1)
            lean = engine if isinstance(engine, LeanEngine) else None
            self._passes = Passes(self._backbone, len(self._grammar), False, lean)
        return score_causal(self._passes, canvases, self._most)

    def _jobs(self, row: int, canvas: Canvas, window: int) -> Iterable[Job]:
        count = streams(self._config, len(canvas.guides))
        return make_jobs(row, canvas, self._grammar, count, self._config.parallel, window)

    def _batch(self, waiting: deque[Job] | Source, capacity: int, count: int) -> _Batch:
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
    on_step: OnStep
    rows: int
    total: int
    index: int = 0

    def report(self, jobs: Sequence[Job | None], ids: Sequence[int | None]) -> None:
        written: list[int | None] = [None] * self.rows
        for job, id in zip(jobs, ids, strict=True):
            if job is not None and id is not None:
                written[job.row] = id
        self.on_step(Step(self.index, self.total, tuple(written)))
        self.index += 1


@dataclass(slots=True)
class _Shared:
    """A prompt that stands at the start of a slot, its first ids that look at one another, and the logits after it."""

    ids: tuple[int, ...]
    prefix: int
    logits_V: Tensor

    def holds(self, prompt: Prompt) -> bool:
        """Whether it is this one."""
        return self.ids == prompt.ids and self.prefix == prompt.prefix


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
        waiting: deque[Job] | Source,
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
        wanted: list[Prompt] = []
        for place, job in enumerate(self.places):
            if job is not None and job.done:
                self.places[place] = None
            if self.places[place] is None and (new := self._next()) is not None:
                self.places[place] = new
                self.seen_BV[place] = False
                for stream, (prompt, prefix) in enumerate(zip(new.prompts, new.prefix, strict=True)):
                    wanted.append(Prompt(stream * len(self.places) + place, prompt, prefix))
                    new.cost.add(len(prompt), len(prompt))
                    new.cost.head_rows += 1
        self._prefill(wanted)

    def _next(self) -> Job | None:
        try:
            return self.waiting.popleft()
        except IndexError:
            return None

    def _prefill(self, wanted: Sequence[Prompt]) -> None:
        """Put prompts into their slots: what stands in another already is copied, and equal ones are computed once."""
        new: list[Prompt] = []
        alike: list[tuple[Prompt, Prompt]] = []
        for each in wanted:
            source = next((at for at, there in self.shared.items() if there.holds(each)), None)
            first = next(
                (other for other in new if (other.ids, other.prefix) == (each.ids, each.prefix)), None
            )
            # The previous content of the slot must not be reused.
            stood = self.shared.pop(each.slot, None)
            if source is not None:
                self._fork(source, each, stood if source == each.slot else None)
            elif first is not None:
                alike.append((first, each))
            else:
                new.append(each)
        if new:
            for each, logits_V in zip(new, self.engine.prefill_all(self.cache, new), strict=True):
                self._stands(each, _Shared(tuple(each.ids), each.prefix, logits_V))
        for first, each in alike:
            self._fork(first.slot, each, None)

    def _fork(self, source: int, target: Prompt, stood: _Shared | None) -> None:
        if source != target.slot:
            self.cache.copy(source, target.slot, len(target.ids))
        self._stands(target, stood or self.shared[source])

    def _stands(self, prompt: Prompt, shared: _Shared) -> None:
        self.shared[prompt.slot] = shared
        self.logits_SV[prompt.slot] = shared.logits_V
        self.positions[prompt.slot] = len(prompt.ids)

    def _sample(self) -> list[tuple[int, float] | None]:
        """For each place an id and its log-probability, or None where an id is forced or no row is."""
        asking = [job if job and not job.forced else None for job in self.places]
        if not any(asking):
            return [None] * len(asking)
        for place, job in enumerate(asking):
            if job is not None:
                self._show(place, job.run.allowed(job.left))
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
        ways = [config.image if job and job.run.image else config.text for job in asking]
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
        for job in self.places:
            if job is not None and not job.done:
                job.cost.partial += self.count
                job.cost.token_forwards += self.count
                job.cost.head_rows += self.count
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
