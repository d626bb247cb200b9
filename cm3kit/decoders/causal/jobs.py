"""What the autoregressive decoder keeps for one row: its prompts, where its run stands, and its random numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Generator

from cm3kit.decoders.causal.runs import SpanRun, start_run
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.types import Canvas, Cost, Fill, MaskSpan
from cm3kit_tokenizers.errors import ConfigError


@dataclass(slots=True)
class Job:
    """One canvas, or with parallel spans one span of it, while it is decoded.

    Attributes:
        row: number of the canvas.
        prompts: of each stream, conditional first, with the lead of the first span.
        prefix: ids at the start of each prompt that look at one another.
        spans: to be written one after the other.
        length: positions that the longest stream may need.
        forced: ids that follow whatever the model says.
        fills: finished spans.
        cost: prefills and steps so far, of all streams.
    """

    row: int
    prompts: tuple[tuple[int, ...], ...]
    prefix: tuple[int, ...]
    spans: tuple[MaskSpan, ...]
    length: int
    grammar: Grammar
    ids: tuple[int, ...]
    uniforms: list[float]
    run: SpanRun = field(init=False)
    left: int = field(init=False)
    forced: deque[int] = field(default_factory=deque)
    written: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    drawn: int = 0

    def begin(self) -> None:
        """Stand before the first id of the next span; empty spans are filled on the way."""
        while self.spans[len(self.fills) :]:
            span = self.spans[len(self.fills)]
            self.run, self.left = start_run(self.grammar, span, self.ids), span.max_tokens
            if self.left:
                return
            self._close(ended=span.exact)

    @property
    def done(self) -> bool:
        """Whether all spans are filled."""
        return len(self.fills) == len(self.spans)

    def next_number(self) -> int:
        """Index of the row's next number in [0, 1)."""
        self.drawn += 1
        return self.drawn - 1

    def take(self, id: int, logprob: float) -> None:
        """Write a sampled id down, and go on to the next span where it ends this one."""
        self.logprobs.append(logprob)
        if id == self.run.end or id in self.run.others:
            self._close(ended=True, end=id)
            return
        self.written.append(id)
        self.run.take(id)
        self.left -= 1
        if self.left == 0 and not self.run.awaits_end:
            self._close(ended=self.run.exact)

    def goes_on(self, unread: int) -> bool:
        """Whether it is not over for certain, whatever the ids are that were drawn for it and not taken yet."""
        # What a constraint allows may have to end behind its budget.
        if self.done or self.lead is not None or self.forced or self.spans[-1].constraint is not None:
            return not self.done
        return self.left > unread

    @property
    def lead(self) -> tuple[int, ...] | None:
        """Ids that stand before the next span, which may begin with the end of this one; None behind the last."""
        following = self.spans[len(self.fills) + 1 :]
        return following[0].lead if following else None

    def _close(self, ended: bool, end: int | None = None) -> None:
        told = end if self.run.others else None
        self.fills.append(Fill(tuple(self.written), tuple(self.logprobs), ended, told))
        self.written, self.logprobs = [], []
        if not self.done:
            end, lead = self.run.end if end is None else end, self.spans[len(self.fills)].lead
            self.forced.extend(lead if lead[:1] == (end,) else (end, *lead))


def make_jobs(
    row: int, canvas: Canvas, grammar: Grammar, streams: int, parallel: bool, window: int
) -> Iterator[Job]:
    """A job for a canvas, or for each of its spans; none where nothing is missing.

    Args:
        streams: how many streams it needs.

    Raises:
        ConfigError: it is longer than the window (`too_long`), has no prompt, or a span that does not lie behind the
            known ids (`bad_value`).
    """
    if not canvas.spans:
        return
    parts = [canvas]
    if parallel:
        parts = [
            replace(canvas, spans=(span,), seed=span_seed(canvas.seed, number))
            for number, span in enumerate(canvas.spans)
        ]
    for part in parts:
        yield _job(row, part, grammar, streams, window, lead_apart=parallel)


def span_seed(seed: int, number: int) -> int:
    """Seed of a span that is filled in parallel to others; the first has the row's own."""
    return (seed + 0x9E3779B97F4A7C15 * number) % (1 << 63)


def _job(row: int, canvas: Canvas, grammar: Grammar, streams: int, window: int, lead_apart: bool) -> Job:
    """A job; with `lead_apart` the first span's lead is put in id by id, so that all spans have one prompt."""
    spans, rows = canvas.spans, [each.ids for each in (canvas, *canvas.guides)[:streams]]
    if any(span.at != len(canvas.ids) for span in spans):
        raise ConfigError(
            "The causal decoder writes behind the known ids, and a span lies among them; lay the page out behind.",
            code="bad_value",
        )
    prompts = tuple((*ids, *spans[0].lead) for ids in rows)
    lead = spans[0].lead if lead_apart and all(rows) else ()
    if not all(prompts):
        raise ConfigError("A prompt is empty; start it with the end-of-document id.", code="bad_value")
    prefix = tuple(len(ids) if canvas.prompt_attention == "full" else 0 for ids in rows)
    budgets = [span.max_tokens for span in spans]
    further = sum(len(span.lead) for span in spans[1:])
    # A constraint may ask for the end behind the last id that the budget allows.
    length = max(map(len, prompts)) + sum(budgets) + further + len(budgets) - 1
    length += spans[-1].constraint is not None
    if length > window:
        raise ConfigError(
            f"The prompt and what is to be written take {length} ids, the model's window holds {window};"
            " shorten the page or ask for less.",
            code="too_long",
        )
    rng = Generator()
    rng.manual_seed(canvas.seed % (1 << 63))
    uniforms = torch.rand(sum(budgets) + len(budgets), generator=rng, dtype=torch.float64).tolist()
    if lead:
        prompts = tuple(rows)
    job = Job(row, prompts, prefix, spans, length, grammar, canvas.ids, uniforms, forced=deque(lead))
    if not lead:
        job.begin()
    return job
