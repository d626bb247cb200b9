"""What the diffusion decoder keeps for one board: what stands on it, its rules, its own dice."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from cm3kit.decoders.diffusion.blocks import Blocks, blocks_of, open_slots
from cm3kit.decoders.diffusion.denoiser import Constraint
from cm3kit.decoders.diffusion.modifiers import Block, Editor
from cm3kit.decoders.diffusion.phases import Opener, Phase
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.decoders.diffusion.written import Cost, Written
from cm3kit.rng import generator
from cm3kit.types import Board, Commit, Fill, Stretch, Trajectory
from cm3kit_tokenizers.errors import ConfigError


@dataclass(slots=True)
class Job:
    """One board on its way through the decoder.

    Attributes:
        row: index among the boards.
        mask: id of an open slot.
        eoss: id that ends the answer of a padded stretch.
        blocks: into which the board is cut.
        ids: the board as it stands.
        guide: the same with the condition masked; empty where nothing guides.
        open: open slots, ascending.
        phase: how the current block is written; None between blocks.
        editor: what may replace written ids; None leaves them.
        window: places `start:stop` of the current block.
        step: index of the next forward pass.
        total: slots of the board.
        posts: passes over the block since it was full, and `settled` whether the last of them changed nothing.
        told: how many of the commits were reported.
        logprobs: of what stands in each slot, of the model itself.
        confidences: the same probability after guidance and masks.
    """

    row: int
    board: Board
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
    total: int = field(init=False)
    _stretches: dict[int, Stretch] = field(init=False)
    posts: int = 0
    settled: bool = False
    told: int = 0
    logprobs: dict[int, float] = field(default_factory=dict)
    confidences: dict[int, float] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self.total = len(self.open)
        stretches = self.board.stretches
        of_slot = {slot: each for each in stretches for slot in range(each.start, each.stop)}
        self._stretches = dict(sorted(of_slot.items()))

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
        return [slot for slot in _between(list(self._stretches), self.window) if slot in self.logprobs]

    @property
    def time(self) -> float:
        """Diffusion time of the board: the share of its slots that is open, as far as the block's own goes."""
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
        """Take note of a pass, over a block that was full or not."""
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
        slots = _between(list(self._stretches), self.window)
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

    def stretch_of(self, slot: int) -> Stretch:
        """The stretch that a slot belongs to."""
        return self._stretches[slot]

    def independent(self, slot: int) -> bool:
        """Whether the other slots of the stretch have no say in this one: codes of a picture never do."""
        stretch = self.stretch_of(slot)
        return stretch.kind == "image" and not stretch.padded

    def put(self, slot: int, id: int, logprob: float, confidence: float) -> None:
        """Write an id that the constraint allows into an open slot."""
        self.constraint.commit(slot, id)
        self._set(slot, id)
        self.logprobs[slot], self.confidences[slot] = logprob, confidence
        del self.open[bisect_left(self.open, slot)]

    def take(self, slot: int) -> int:
        """Open a written slot again; the id that stood there."""
        id = self.ids[slot]
        self.constraint.release(slot)
        self._set(slot, self.mask)
        del self.logprobs[slot], self.confidences[slot]
        insort(self.open, slot)
        return id

    def instead(self, slot: int) -> Tensor:
        """Ids that may stand in a written slot, bool (V,)."""
        self.constraint.release(slot)
        allowed_V = self.constraint.allowed([slot])[0].clone()
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
        for stretch in self.board.stretches:
            closed += self._closable(stretch)
        for slot in closed:
            self.put(slot, self.eoss, 0.0, 1.0)
        return closed

    def _closable(self, stretch: Stretch) -> list[int]:
        written = self.ids[stretch.start : stretch.stop]
        if not stretch.padded or self.eoss not in written:
            return []
        end = written.index(self.eoss)
        if self.mask in written[:end]:
            return []
        return [stretch.start + at for at in range(end, len(written)) if written[at] == self.mask]

    def log(
        self,
        slots: Sequence[int],
        logprobs: Sequence[float],
        scores: Sequence[float],
        kind: Literal["write", "remask", "edit"] = "write",
        ids: Sequence[int] | None = None,
    ) -> Commit:
        """Take down what the current step did; without `ids`, those that now stand in the slots."""
        stand = [self.ids[slot] for slot in slots] if ids is None else ids
        commit = Commit(self.step, tuple(slots), tuple(stand), tuple(logprobs), tuple(scores), kind)
        self.commits.append(commit)
        return commit

    def written(self) -> Written:
        """The result, once nothing is open."""
        fills = tuple(self._fill(stretch) for stretch in self.board.stretches)
        return Written(fills, Trajectory(self.board, tuple(self.commits)), self.cost, tuple(self.ids))

    def _fill(self, stretch: Stretch) -> Fill:
        ids, stop = tuple(self.ids[stretch.start : stretch.stop]), stretch.stop
        ended = not stretch.padded or self.eoss in ids
        if stretch.padded and ended:
            stop = stretch.start + ids.index(self.eoss) + 1
            ids = ids[: stop - 1 - stretch.start]
        return Fill(ids, sum(self.logprobs[slot] for slot in range(stretch.start, stop)), ended)


def make_job(
    row: int,
    board: Board,
    constraint: Constraint,
    mask: int,
    eoss: int,
    config: DiffusionConfig,
    editor: Editor | None = None,
) -> Job:
    """A job for a board.

    Raises:
        ConfigError: stretches leave the board or overlap, the mask id is missing in one of them or stands
            outside, or the guide has another length (`bad_value`).
    """
    slots = open_slots(board)
    for ids in filter(None, (board.ids, board.guide)):
        if len(ids) != len(board.ids) or any(ids[slot] != mask for slot in slots):
            raise ConfigError(
                f"Row {row}: every place of a stretch must hold the mask id {mask}, in the guide too.",
                code="bad_value",
            )
    if board.ids.count(mask) != len(slots):
        raise ConfigError(
            f"Row {row}: the mask id {mask} stands outside the stretches; add a stretch there.",
            code="bad_value",
        )
    return Job(
        row=row,
        board=board,
        constraint=constraint,
        mask=mask,
        eoss=eoss,
        blocks=blocks_of(board, config),
        ids=list(board.ids),
        guide=list(board.guide) if config.guidance != 1 else [],
        open=slots,
        rng=generator(board.seed),
        editor=editor,
    )


def _between(slots: list[int], window: tuple[int, int]) -> list[int]:
    return slots[bisect_left(slots, window[0]) : bisect_left(slots, window[1])]
