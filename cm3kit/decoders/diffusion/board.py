"""The rows of one pass while ids are written into them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from cm3kit.decoders.diffusion.job import Job
from cm3kit.decoders.diffusion.modifiers import Block, Editor
from cm3kit.decoders.diffusion.pass_logits import Part
from cm3kit.decoders.diffusion.readout import Reading
from cm3kit.decoders.diffusion.samplers import Phase
from cm3kit_tokenizers.errors import ModelError


@dataclass(slots=True)
class Board:
    """One row in one pass, taken before the pass changes it.

    Attributes:
        job: the row.
        wanted: its open slots that may be written.
        scored: all slots that were asked for, ascending.
        part: what the model says of these.
        passes: 2 where it was guided, else 1.
        written: slots that may be edited.
        block: as it was before; only where there are such slots.
        before: commits there were.
    """

    job: Job
    wanted: list[int]
    scored: list[int]
    part: Part
    passes: int
    written: list[int] = field(init=False)
    block: Block | None = field(init=False)
    before: int = field(init=False)

    def __post_init__(self) -> None:
        self.written = self.job.written_slots if self.job.editor else []
        self.block = self.job.block() if self.written else None
        self.before = len(self.job.commits)

    @property
    def writes(self) -> Phase | None:
        """How the row's block is written, where it is at all."""
        return self.job.phase if self.wanted else None

    @property
    def edits(self) -> tuple[Editor, Block] | None:
        """What edits the row, where there is anything to edit, and the block."""
        return (self.job.editor, self.block) if self.job.editor and self.block else None

    def of(self, slots: Sequence[int]) -> Part:
        """What the model says of some of the slots."""
        return self.part.of([bisect_left(self.scored, slot) for slot in slots])

    def close(self, edited: bool) -> None:
        """Open again what the step opens, and record the pass."""
        self.job.cost.wasted += 0 if len(self.job.commits) > self.before else self.passes
        if self.wanted:
            self.job.reopen()
        self.job.passed(full=not self.wanted, edited=edited)


@dataclass(slots=True)
class Put:
    """An id that was written.

    Attributes:
        at: number of the slot in the reading.
        sure: its probability after guidance and masks.
    """

    board: Board
    slot: int
    id: int
    at: int
    sure: float


def refuse_unsound(boards: Sequence[Board], sizes: Sequence[int], reading: Reading) -> None:
    """Raise where a slot has no score.

    Args:
        sizes: how many slots of the reading each board has.

    Raises:
        ModelError: no allowed id of a slot has a finite score (`bad_checkpoint`).
    """
    start = 0
    for board, size in zip(boards, sizes, strict=True):
        if not all(reading.sound[start : start + size]):
            raise ModelError(
                f"The model's scores of row {board.job.row} are not finite; train or copy it again.",
                code="bad_checkpoint",
            )
        start += size


def tell(reading: Reading, puts: Sequence[Put]) -> None:
    """Note in each row how likely its new ids are."""
    logprobs = reading.model_logp([put.at for put in puts], [put.id for put in puts])
    for put, logprob in zip(puts, logprobs, strict=True):
        put.board.job.tell(put.slot, logprob, put.sure)
