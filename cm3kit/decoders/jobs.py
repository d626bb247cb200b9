"""What the autoregressive decoder keeps for one row: its prompts, where its run stands, and its own dice."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Generator

from cm3kit.decoders.grammar import Grammar
from cm3kit.decoders.moves import State
from cm3kit.types import Blank, Canvas, Fill, Row
from cm3kit_tokenizers.errors import ConfigError


@dataclass(slots=True)
class Job:
    """One row, or with parallel blanks one blank of it, on its way through the decoder.

    Attributes:
        row: index in the canvas.
        prompts: of each stream, conditional first, with the first blank's lead.
        blanks: to be written one after the other.
        length: positions that the longest stream may come to need.
        forced: ids that follow whatever the model says.
        fills: finished blanks.
    """

    row: int
    prompts: tuple[tuple[int, ...], ...]
    blanks: tuple[Blank, ...]
    length: int
    grammar: Grammar
    prompt: tuple[int, ...]
    uniforms: list[float]
    state: State = field(init=False)
    left: int = field(init=False)
    forced: deque[int] = field(default_factory=deque)
    written: list[int] = field(default_factory=list)
    logprob: float = 0.0
    fills: list[Fill] = field(default_factory=list)
    drawn: int = 0

    def begin(self) -> None:
        """Stand before the first id of the next blank; empty blanks are filled on the way."""
        while self.blanks[len(self.fills) :]:
            blank = self.blanks[len(self.fills)]
            self.state, self.left = self.grammar.start(blank, self.prompt), self.grammar.budget(blank)
            if self.left:
                return
            self._close(ended=blank.length == 0)

    @property
    def done(self) -> bool:
        """Whether all blanks are filled."""
        return len(self.fills) == len(self.blanks)

    def next_uniform(self) -> float:
        """The row's next number in [0, 1)."""
        self.drawn += 1
        return self.uniforms[self.drawn - 1]

    def take(self, id: int, logprob: float) -> None:
        """Write a sampled id down, and go on to the next blank where it ends this one."""
        self.logprob += logprob
        if id == self.state.end:
            self._close(ended=True)
            return
        self.written.append(id)
        self.state = self.grammar.advance(self.state, id)
        self.left -= 1
        if self.left == 0:
            self._close(ended=self.state.exact)

    def _close(self, ended: bool) -> None:
        self.fills.append(Fill(tuple(self.written), self.logprob, ended))
        self.written, self.logprob = [], 0.0
        if not self.done:
            end, lead = self.state.end, self.blanks[len(self.fills)].lead
            self.forced.extend(lead if lead[:1] == (end,) else (end, *lead))


def make_jobs(
    canvas: Canvas, grammar: Grammar, streams: Sequence[int], parallel: bool, window: int
) -> Iterator[Job]:
    """A job for each row, or for each blank of each row.

    Args:
        streams: how many streams each row needs.

    Raises:
        ConfigError: a row is longer than the window (`too_long`) or has no prompt (`bad_value`).
    """
    for index, row in enumerate(canvas.rows):
        if not row.blanks:
            continue
        parts = [row]
        if parallel:
            parts = [
                replace(row, blanks=(blank,), seed=blank_seed(row.seed, number))
                for number, blank in enumerate(row.blanks)
            ]
        for part in parts:
            yield _job(index, part, grammar, streams[index], window)


def blank_seed(seed: int, number: int) -> int:
    """Seed of a blank that is filled in parallel to others; the first has the row's own."""
    return (seed + 0x9E3779B97F4A7C15 * number) % (1 << 63)


def _job(index: int, row: Row, grammar: Grammar, streams: int, window: int) -> Job:
    lead = row.blanks[0].lead
    prompts = tuple((*prompt, *lead) for prompt in (row.prompt, *row.guides)[:streams])
    if not all(prompts):
        raise ConfigError("A prompt is empty; start it with the end-of-document id.", code="bad_value")
    budgets = [grammar.budget(blank) for blank in row.blanks]
    further = sum(len(blank.lead) for blank in row.blanks[1:])
    length = max(map(len, prompts)) + sum(budgets) + further + len(budgets) - 1
    if length > window:
        raise ConfigError(
            f"The prompt and what is to be written take {length} ids, the model's window holds {window};"
            " shorten the page or ask for less.",
            code="too_long",
        )
    rng = Generator()
    rng.manual_seed(row.seed % (1 << 63))
    uniforms = torch.rand(sum(budgets) + len(budgets), generator=rng, dtype=torch.float64).tolist()
    job = Job(index, prompts, row.blanks, length, grammar, row.prompt, uniforms)
    job.begin()
    return job
