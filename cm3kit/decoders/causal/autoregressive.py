"""Fill canvases from left to right, on a static key-value cache.

One prefill serves all spans of a row, as every fill is appended (InCoder, arXiv:2204.05999, sec. 2.2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from weakref import finalize

import torch

from cm3kit.decoders.cache import Cache
from cm3kit.decoders.causal.batch import Batch
from cm3kit.decoders.causal.drafts import Drafter, Lookup
from cm3kit.decoders.causal.guidance import streams
from cm3kit.decoders.causal.jobs import Job, make_jobs
from cm3kit.decoders.causal.sampler import Sampler
from cm3kit.decoders.causal.scoring import score_causal
from cm3kit.decoders.causal.source import Source, result_of
from cm3kit.decoders.diffusion.cached_forward import Passes
from cm3kit.decoders.engines import make_engine
from cm3kit.decoders.fast_llama import Engine, LeanEngine, supports
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.precision import auto_precision
from cm3kit.decoders.scoring import Scored
from cm3kit.decoders.settings import DecodeConfig
from cm3kit.decoders.static_llama import static_size
from cm3kit.models.plain import DecoderWeights, device_of
from cm3kit.types import Canvas, OnStep, Result, Step, ignore_step
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError


class Autoregressive:
    """The decoder of causal models.

    A row's result depends on the row and the settings, not on the other rows; nor on the batch size where products
    are steady (`kernels`), which on a CPU are all but those of int8.

    Args:
        backbone: a causal language model of transformers, or the weights of a plain one (`models.plain`); they are read
            once, here.
        grammar: which ids may follow which.
        config: how to sample.
        window: most positions of a row of a stream; the model's unless given.
        drafter: of the draft "diffusion".

    Raises:
        ConfigError: drafts cannot be verified to the bit here (`bad_value`).
    """

    def __init__(
        self,
        backbone: DecoderWeights,
        grammar: Grammar,
        config: DecodeConfig,
        window: int | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        if config.precision == "auto":
            config = config.model_copy(update={"precision": auto_precision(backbone, many=False)})
        self._grammar, self._config, self._backbone = grammar, config, backbone
        self._most = int(backbone.config.max_position_embeddings)
        self._window = min(window or self._most, self._most)
        self._engines: dict[int, Engine] = {}
        self._idle: dict[tuple[int, int], list[tuple[Cache, Sampler]]] = {}
        self._passes: Passes | None = None
        self._drafter: Drafter | None = None
        if config.draft != "none":
            self._drafter = Lookup() if config.draft == "lookup" else drafter
            if self._drafter is None:
                raise ValueError(f"draft {config.draft!r} needs a drafter")
            refuse_drafts(backbone, config)

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

    def _batch(self, waiting: deque[Job] | Source, capacity: int, count: int) -> Batch:
        engine = self._engine(count)
        # What is captured on a device holds for its own tensors alone, so these serve one batch after another.
        room = min(static_size(capacity), self._most + 1) if engine.ahead else capacity
        idle = self._idle.setdefault((count, room), [])
        try:
            cache, sampler = idle.pop()
        except IndexError:
            cache, sampler = self._open(engine, room, count)
        batch = Batch(engine, self._grammar.vocab.pad, waiting, cache, sampler, self._drafter)
        if engine.ahead:
            finalize(batch, idle.append, (cache, sampler)).atexit = False
        return batch

    def _open(self, engine: Engine, room: int, count: int) -> tuple[Cache, Sampler]:
        # They outlive a call, which may be one under inference mode.
        with torch.inference_mode(False):
            cache = engine.open(self._config.batch_size * count, room)
            device, ahead = cache.layers[0].device, engine.ahead
            return cache, Sampler(self._grammar, self._config, count, room, device, ahead)

    def _engine(self, count: int) -> Engine:
        # Weights are packed for a number of rows on a CPU alone.
        rows = count * self._config.batch_size if device_of(self._backbone).type == "cpu" else 0
        if rows not in self._engines:
            self._engines[rows] = make_engine(
                self._backbone, len(self._grammar), self._config.precision, rows, self._config.compile
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
        # Where drafts are verified, rows go on at times of their own.
        self.on_step(Step(min(self.index, self.total - 1), self.total, tuple(written)))
        self.index += 1


def _steps(jobs: Sequence[Job], places: int) -> int:
    """Steps that filling takes if no run ends before its budget."""
    ends = [0] * places
    for job in jobs:
        first = ends.index(min(ends))
        ends[first] += job.length - max(map(len, job.prompts))
    return max(ends, default=0)


def refuse_drafts(backbone: DecoderWeights, config: DecodeConfig) -> None:
    """ConfigError (`bad_value`) where several ids of a row at once have not the bits of one after the other."""
    device = device_of(backbone).type
    if supports(backbone) and device == "cpu" and config.precision != "int8":
        return
    raise ConfigError(
        f"draft {config.draft!r} is for plain Llama and Qwen3 decoders on a CPU in any format but int8, where it"
        f" changes no result; this is {backbone.config.model_type!r} on {device} in {config.precision}. Leave it out.",
        code="bad_value",
    )
