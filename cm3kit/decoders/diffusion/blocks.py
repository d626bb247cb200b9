"""Which places of a board are to be written, and the blocks that they are written in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from cm3kit.decoders.diffusion.quotas import ascending_blocks
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.types import Board
from cm3kit_tokenizers.errors import ConfigError


def open_slots(board: Board) -> list[int]:
    """Slots of all stretches of a board, ascending; ConfigError (`bad_value`) where they overlap or leave it."""
    slots = sorted(slot for each in board.stretches for slot in range(each.start, each.stop))
    inside = not slots or (slots[0] >= 0 and slots[-1] < len(board.ids))
    if not inside or len(set(slots)) < len(slots) or any(each.stop < each.start for each in board.stretches):
        raise ConfigError(
            f"The stretches of a board of {len(board.ids)} places overlap or leave it.", code="bad_value"
        )
    return slots


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a board of `length` places.

    Attributes:
        origin: place where the first block starts.
        size: places of a block; None for one block.
        cuts: places where blocks of ascending sizes start; empty for equal ones.
    """

    length: int
    origin: int = 0
    size: int | None = None
    cuts: tuple[int, ...] = ()

    def around(self, slot: int) -> tuple[int, int]:
        """Places `start:stop` of the block around a slot."""
        if not self.cuts:
            return block_of(slot, self.origin, self.size, self.length)
        index = bisect_right(self.cuts, slot)
        return self.cuts[index - 1], self.cuts[index] if index < len(self.cuts) else self.length

    def later(self, window: tuple[int, int]) -> bool:
        """Whether this block of ascending ones is not the first, and so is written in one step."""
        return bool(self.cuts) and window[0] > self.cuts[0]


def blocks_of(slots: Sequence[int], config: DiffusionConfig, length: int) -> Blocks:
    """The blocks of a board that is open at these slots.

    Equal ones start at the first open slot, or on the grid that an exact cache is kept by.

    Raises:
        ConfigError: there are more ascending blocks than steps (`bad_config`).
    """
    if config.ascending_blocks is not None and slots:
        counts = [sum(each) for each in ascending_blocks(len(slots), config.ascending_blocks)]
        firsts = [0, *accumulate(counts[:-1])]
        return Blocks(length, cuts=tuple(slots[first] for first in firsts))
    on_grid = not slots or config.block_size is None or config.cache == "exact"
    return Blocks(length, 0 if on_grid else slots[0], config.block_size)


def block_of(slot: int, origin: int, size: int | None, length: int) -> tuple[int, int]:
    """Places `start:stop` of the block around a slot of a board of this length."""
    if size is None:
        return 0, length
    start = origin + (slot - origin) // size * size
    return start, min(start + size, length)
