"""The state that the diffusion decoder keeps for one canvas: its ids, constraint and random numbers."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from cm3kit.decoders.diffusion.blocks import Blocks, blocks_of, masked_positions
from cm3kit.decoders.diffusion.denoiser import Constraint, masks_of
from cm3kit.decoders.diffusion.modifiers import Block, Editor
from cm3kit.decoders.diffusion.samplers import Opener, Phase
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.rng import generator
from cm3kit.types import Canvas, Commit, Cost, Fill, Flat, MaskSpan, Result
from cm3kit_tokenizers.errors import ConfigError


@dataclass(slots=True)
class Job:
    """One canvas while it is decoded.

    Attributes:
        row: index among the canvases.
        flat: the canvas as one sequence; slots are its masked positions.
        mask: id of an open slot.
        eoss: id that ends the answer of a span that is not exact.
        blocks: into which the canvas is cut.
        ids: the sequence at present.
        guide: the same with the condition masked; empty where nothing guides.
        open: open slots, ascending.
        phase: how the current block is written; None between blocks.
        editor: what may replace written ids; None leaves them.
        window: places `start:stop` of the current block.
        step: index of the next forward pass.
        first_steps: steps of the first block.
        total: slots of the canvas.
        posts: passes over the block since it was full, and `settled` whether the last of them changed nothing.
        told: how many of the commits were reported.
        logprobs: of the id in each slot, by the model itself.
        confidences: the same probability after guidance and masks.
    """

    row: int
    canvas: Canvas
    flat: Flat
    constraint: Constraint
    mask: int
    eoss: int
    blocks: Blocks
    ids: list[int]
    guide: list[int]
    open: list[int]
    rng: Generator
    editor: Editor | None = None
    phase: Phase | None = None
    window: tuple[int, int] = (0, 0)
    step: int = 0
    first_steps: int = 0
    total: int = field(init=False)
    _span_of: dict[int, int] = field(init=False)
    posts: int = 0
    settled: bool = False
    told: int = 0
    logprobs: dict[int, float] = field(default_factory=dict)
    confidences: dict[int, float] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self.total = len(self.open)
        self._span_of = {slot: number for number, each in enumerate(self.flat.ranges) for slot in each}

    @property
    def done(self) -> bool:
        """Whether nothing is open, and nothing will be changed any more."""
        return not self.open and self.idle

    @property
    def idle(self) -> bool:
        """Whether the current block is done, or there is none."""
        return self.phase is None or not (self.slots or self.phase.lasting or self._editing)

    @property
    def _editing(self) -> bool:
        return self.editor is not None and self.posts < self.editor.post_steps and not self.settled

    @property
    def slots(self) -> list[int]:
        """Open slots of the current block, ascending."""
        return _between(self.open, self.window)

    @property
    def written_slots(self) -> list[int]:
        """Slots of the current block that are written, ascending."""
        return [slot for slot in _between(list(self._span_of), self.window) if slot in self.logprobs]

    @property
    def time(self) -> float:
        """Diffusion time of the canvas: the share of its slots that is open, as far as the block's own goes."""
        if self.phase is None:
            return len(self.open) / self.total
        later = len(self.open) - len(self.slots)
        return (self.phase.time(len(self.slots)) * self.phase.blanks + later) / self.total

    @property
    def block_time(self) -> float:
        """Diffusion time of the current block alone."""
        return self.time if self.phase is None else self.phase.time(len(self.slots))

    def enter(self, window: tuple[int, int], opener: Opener) -> None:
        """Go on to a block."""
        self.window, self.posts, self.settled = window, 0, False
        self.phase = opener(len(self.slots), self.blocks.later(window)) if self.slots else None
        if self.phase is not None and not self.blocks.later(window):
            self.first_steps = self.phase.steps

    def counted(self, step: int, steps: int) -> tuple[int, int]:
        """A step of the block and how many there are; of all blocks where their sizes ascend, as released code counts.

        Of these blocks all but the first have one step each.
        """
        cuts = self.blocks.cuts
        if not cuts:
            return step, steps
        number = cuts.index(self.window[0])
        return step + (self.first_steps + number - 1 if number else 0), self.first_steps + len(cuts) - 1

    def want(self) -> list[int]:
        """Open slots that the next pass must score. None where the block is done, or but for edits.

        Steps that need no pass are taken on the way.
        """
        phase = self.phase
        while phase is not None and (self.slots or phase.lasting):
            wanted = phase.want(self.slots, self.rng, self.block() if phase.lasting else None)
            if wanted:
                return wanted
            self.reopen()
        return []

    def scored(self, wanted: Sequence[int]) -> list[int]:
        """The slots that the next pass must score, ascending: with an editor the written ones too."""
        if self.editor is None or self.idle:
            return list(wanted)
        return sorted([*wanted, *self.written_slots])

    def passed(self, full: bool, edited: bool) -> None:
        """Record a pass over a block, which was `full` or not."""
        self.step += 1
        self.posts += full
        self.settled = full and not edited

    def news(self) -> list[Commit]:
        """The commits since this was asked last."""
        news = self.commits[self.told :]
        self.told = len(self.commits)
        return news

    def block(self) -> Block:
        """The current block as modifiers see it."""
        slots = _between(list(self._span_of), self.window)
        step, steps = (self.phase.step, self.phase.steps) if self.phase else (0, 1)
        return Block(
            torch.tensor(slots),
            torch.tensor([self.ids[slot] for slot in slots]),
            torch.tensor([slot in self.logprobs for slot in slots]),
            torch.tensor([self.confidences.get(slot, 0.0) for slot in slots], dtype=torch.float64),
            step,
            steps,
            self.phase.alphas if self.phase else None,
        )

    def span_of(self, slot: int) -> int:
        """The number of the span that a slot belongs to."""
        return self._span_of[slot]

    def independent(self, slot: int) -> bool:
        """Whether the constraint on this slot is independent of the span's other slots, as for codes of a picture."""
        span = self.canvas.spans[self.span_of(slot)]
        return span.kind == "image" and span.exact

    def put(self, slot: int, id: int, logprob: float = math.nan, confidence: float = math.nan) -> None:
        """Write an id that the constraint allows into an open slot; how likely it is may be told later."""
        self.constraint.commit(slot, id)
        self._set(slot, id)
        self.tell(slot, logprob, confidence)
        del self.open[bisect_left(self.open, slot)]

    def tell(self, slot: int, logprob: float, confidence: float) -> None:
        """How likely the id in a slot is."""
        self.logprobs[slot], self.confidences[slot] = logprob, confidence

    def take(self, slot: int) -> int:
        """Mask a written slot again, and return the id that was there."""
        id = self.ids[slot]
        self.constraint.release(slot)
        self._set(slot, self.mask)
        del self.logprobs[slot], self.confidences[slot]
        insort(self.open, slot)
        return id

    def instead(self, slot: int) -> Tensor:
        """Ids that may stand in a written slot, bool (V,), not to be written to."""
        self.constraint.release(slot)
        allowed_V = masks_of(self.constraint, [slot])[0]
        self.constraint.commit(slot, self.ids[slot])
        return allowed_V

    def reopen(self) -> Commit | None:
        """Open the slots that the current step is to open again."""
        slots = self.phase.reopened if self.phase else []
        if not slots:
            return None
        logprobs = [self.logprobs[slot] for slot in slots]
        return self.log(slots, logprobs, [0.0] * len(slots), "remask", [self.take(slot) for slot in slots])

    def _set(self, slot: int, id: int) -> None:
        self.ids[slot] = id
        if self.guide:
            self.guide[slot] = id

    def close(self) -> list[int]:
        """Write `<eoss>` into what follows the first one where all before it is written; those slots."""
        closed: list[int] = []
        for span, where in zip(self.canvas.spans, self.flat.ranges, strict=True):
            closed += [] if span.exact else self._closable(where)
        for slot in closed:
            self.put(slot, self.eoss, 0.0, 1.0)
        return closed

    def _closable(self, where: range) -> list[int]:
        written = self.ids[where.start : where.stop]
        if self.eoss not in written:
            return []
        end = written.index(self.eoss)
        if self.mask in written[:end]:
            return []
        return [where.start + at for at in range(end, len(written)) if written[at] == self.mask]

    def log(
        self,
        slots: Sequence[int],
        logprobs: Sequence[float],
        scores: Sequence[float],
        kind: Literal["write", "remask", "edit"] = "write",
        ids: Sequence[int] | None = None,
    ) -> Commit:
        """Record the changes of the current step; `ids` are by default those now in the slots."""
        stand = [self.ids[slot] for slot in slots] if ids is None else ids
        commit = Commit(self.step, tuple(slots), tuple(stand), tuple(logprobs), tuple(scores), kind)
        self.commits.append(commit)
        return commit

    def result(self) -> Result:
        """The result, once nothing is open."""
        fills = (self._fill(*each) for each in zip(self.canvas.spans, self.flat.ranges, strict=True))
        return Result(self.canvas, tuple(fills), self.cost, tuple(self.commits))

    def _fill(self, span: MaskSpan, where: range) -> Fill:
        ids, stop = tuple(self.ids[where.start : where.stop]), where.stop
        ended = span.exact or self.eoss in ids
        if not span.exact and ended:
            stop = where.start + ids.index(self.eoss) + 1
            ids = ids[: stop - 1 - where.start]
        elif not ended:
            whole = getattr(self.constraint, "complete", None)
            ended = whole is not None and whole(span, ids)
        return Fill(ids, tuple(self.logprobs[slot] for slot in range(where.start, stop)), ended)


def make_job(
    row: int,
    canvas: Canvas,
    constraint: Constraint,
    mask: int,
    eoss: int,
    config: DiffusionConfig,
    editor: Editor | None = None,
) -> Job:
    """A job for a canvas.

    Raises:
        ConfigError: its spans do not lie in it, its known ids hold the mask id, or its guide has other spans
            (`bad_value`).
    """
    flat = canvas.flatten(mask)
    if mask in canvas.ids:
        raise ConfigError(
            f"Row {row}: the mask id {mask} is among the known ids; add a span there.", code="bad_value"
        )
    guides = [each.flatten(mask) for each in canvas.guides[:1]]
    if any(len(each.ids) != len(flat.ids) or each.ranges != flat.ranges for each in guides):
        raise ConfigError(
            f"Row {row}: the guide must be as long as the canvas, with its spans at the same positions.",
            code="bad_value",
        )
    return Job(
        row=row,
        canvas=canvas,
        flat=flat,
        constraint=constraint,
        mask=mask,
        eoss=eoss,
        blocks=blocks_of(flat, config),
        ids=list(flat.ids),
        guide=list(guides[0].ids) if guides and config.guidance != 1 else [],
        open=masked_positions(flat),
        rng=generator(canvas.seed),
        editor=editor,
    )


def _between(slots: list[int], window: tuple[int, int]) -> list[int]:
    return slots[bisect_left(slots, window[0]) : bisect_left(slots, window[1])]
