"""What the diffusion decoder keeps for one board: what stands on it, its rules, its own dice."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Generator

from cm3kit.decoders.diffusion.denoiser import Constraint
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
        block_size: places of a block; None for one block.
        origin: place where the first block starts.
        ids: the board as it stands.
        guide: the same with the condition masked; empty where nothing guides.
        open: open slots, ascending.
        phase: how the current block is written; None between blocks.
        window: places `start:stop` of the current block.
        step: index of the next forward pass.
    """

    row: int
    board: Board
    constraint: Constraint
    mask: int
    eoss: int
    block_size: int | None
    origin: int
    ids: list[int]
    guide: list[int]
    open: list[int]
    rng: Generator
    phase: Phase | None = None
    window: tuple[int, int] = (0, 0)
    step: int = 0
    total: int = field(init=False)
    _stretches: dict[int, Stretch] = field(init=False)
    logprobs: dict[int, float] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self.total = len(self.open)
        stretches = self.board.stretches
        self._stretches = {slot: each for each in stretches for slot in range(each.start, each.stop)}

    @property
    def done(self) -> bool:
        """Whether nothing is open."""
        return not self.open

    @property
    def slots(self) -> list[int]:
        """Open slots of the current block, ascending."""
        return self.open[bisect_left(self.open, self.window[0]) : bisect_left(self.open, self.window[1])]

    @property
    def time(self) -> float:
        """Diffusion time of the board: the share of its slots that is open, as far as the block's own goes."""
        if self.phase is None:
            return len(self.open) / self.total
        later = len(self.open) - len(self.slots)
        return (self.phase.time(len(self.slots)) * self.phase.blanks + later) / self.total

    def window_of(self, slot: int) -> tuple[int, int]:
        """The block around a slot."""
        return block_of(slot, self.origin, self.block_size, len(self.ids))

    def enter(self, window: tuple[int, int], opener: Opener) -> None:
        """Go on to a block."""
        self.window = window
        self.phase = opener(len(self.slots)) if self.slots else None

    def want(self) -> list[int]:
        """The slots that the next pass must score; none where the block is done."""
        return self.phase.want(self.slots, self.rng) if self.phase and self.slots else []

    def stretch_of(self, slot: int) -> Stretch:
        """The stretch that a slot belongs to."""
        return self._stretches[slot]

    def independent(self, slot: int) -> bool:
        """Whether the other slots of the stretch have no say in this one: codes of a picture never do."""
        stretch = self.stretch_of(slot)
        return stretch.kind == "image" and not stretch.padded

    def put(self, slot: int, id: int, logprob: float) -> None:
        """Write an id that the constraint allows into an open slot."""
        self.constraint.commit(slot, id)
        self._set(slot, id)
        self.logprobs[slot] = logprob
        del self.open[bisect_left(self.open, slot)]

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
            self.put(slot, self.eoss, 0.0)
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
    row: int, board: Board, constraint: Constraint, mask: int, eoss: int, config: DiffusionConfig
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
        block_size=config.block_size,
        origin=block_origin(slots, config),
        ids=list(board.ids),
        guide=list(board.guide) if config.guidance != 1 else [],
        open=slots,
        rng=generator(board.seed),
    )


def open_slots(board: Board) -> list[int]:
    """Slots of all stretches of a board, ascending; ConfigError (`bad_value`) where they overlap or leave it."""
    slots = sorted(slot for each in board.stretches for slot in range(each.start, each.stop))
    inside = not slots or (slots[0] >= 0 and slots[-1] < len(board.ids))
    if not inside or len(set(slots)) < len(slots) or any(each.stop < each.start for each in board.stretches):
        raise ConfigError(
            f"The stretches of a board of {len(board.ids)} places overlap or leave it.", code="bad_value"
        )
    return slots


def block_origin(slots: Sequence[int], config: DiffusionConfig) -> int:
    """Where the first block starts: at the first open slot, or on the grid that an exact cache is kept by."""
    return slots[0] if slots and config.block_size and config.cache != "exact" else 0


def block_of(slot: int, origin: int, size: int | None, length: int) -> tuple[int, int]:
    """Places `start:stop` of the block around a slot of a board of this length."""
    if size is None:
        return 0, length
    start = origin + (slot - origin) // size * size
    return start, min(start + size, length)
