"""Fill a canvas from left to right, on a static key-value cache.

One prefill serves all blanks of a row, as every fill is appended (InCoder, arXiv:2204.05999, sec. 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
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
from cm3kit.types import Canvas, Fill, Step, Watch, unwatched


class Autoregressive:
    """The decoder of causal models.

    A row's result depends on the row, the settings and the batch size, not on the other rows.

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
                _Batch(self._engine(count), self._grammar, self._config, mine, count).run(progress)
        filled: list[list[Fill]] = [[] for _ in canvas.rows]
        for job in jobs:
            filled[job.row] += job.fills
        return [tuple(fills) for fills in filled]

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
        self, engine: Engine, grammar: Grammar, config: DecodeConfig, jobs: list[Job], count: int
    ) -> None:
        places, vocab = config.batch_size, len(grammar)
        self.engine, self.grammar, self.config, self.count = engine, grammar, config, count
        self.waiting = [job for job in reversed(jobs) if not job.done]
        self.places: list[Job | None] = [None] * places
        self.cache: Cache = engine.open(places * count, max(job.length for job in jobs) + 1)
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

    def run(self, progress: _Progress) -> None:
        """Fill every job."""
        self._admit()
        while any(self.places):
            sampled = self._sample()
            ids = [self._advance(place, choice) for place, choice in enumerate(sampled)]
            progress.report(self.places, [choice and choice[0] for choice in sampled])
            if any(job is not None and not job.done for job in self.places):
                self._step(ids)
            self._admit()

    def _admit(self) -> None:
        for place, job in enumerate(self.places):
            if job is not None and job.done:
                self.places[place] = None
            if self.places[place] is None and self.waiting:
                self.places[place] = new = self.waiting.pop()
                self.seen_BV[place] = False
                for stream, prompt in enumerate(new.prompts):
                    self._prefill(stream * len(self.places) + place, prompt)

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
