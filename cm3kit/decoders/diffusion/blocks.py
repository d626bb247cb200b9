"""Which places of a board are to be written, and the blocks that they are written in."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, chain

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
        windows: places `start:stop` of all blocks, in order, where each gap has its own; empty otherwise.
    """

    length: int
    origin: int = 0
    size: int | None = None
    cuts: tuple[int, ...] = ()
    windows: tuple[tuple[int, int], ...] = ()

    @property
    def key(self) -> tuple[int, ...]:
        """Boards that go from block to block together have this in common."""
        return tuple(chain.from_iterable(self.windows)) or (self.origin,)

    def around(self, slot: int) -> tuple[int, int]:
        """Places `start:stop` of the block around a slot."""
        if self.windows:
            return self.windows[bisect_right(self.windows, (slot, self.length)) - 1]
        if not self.cuts:
            return block_of(slot, self.origin, self.size, self.length)
        index = bisect_right(self.cuts, slot)
        return self.cuts[index - 1], self.cuts[index] if index < len(self.cuts) else self.length

    def later(self, window: tuple[int, int]) -> bool:
        """Whether this block of ascending ones is not the first, and so is written in one step."""
        return bool(self.cuts) and window[0] > self.cuts[0]


def blocks_of(board: Board, config: DiffusionConfig) -> Blocks:
    """The blocks of a board.

    Equal ones start at the first open slot, or on the grid that an exact cache is kept by; with the causal one at
    the start of each gap.

    Raises:
        ConfigError: stretches overlap or leave the board (`bad_value`), or there are more ascending blocks than
            steps (`bad_config`).
    """
    slots, length = open_slots(board), len(board.ids)
    if config.ascending_blocks is not None and slots:
        counts = [sum(each) for each in ascending_blocks(len(slots), config.ascending_blocks)]
        firsts = [0, *accumulate(counts[:-1])]
        return Blocks(length, cuts=tuple(slots[first] for first in firsts))
    if config.cache == "causal" and config.block_size is not None:
        size = config.block_size
        windows = [
            (start, min(start + size, each.stop))
            for each in sorted(board.stretches, key=lambda each: each.start)
            for start in range(each.start, each.stop, size)
        ]
        return Blocks(length, size=size, windows=tuple(windows))
    on_grid = not slots or config.block_size is None or config.cache == "exact"
    return Blocks(length, 0 if on_grid else slots[0], config.block_size)


def block_of(slot: int, origin: int, size: int | None, length: int) -> tuple[int, int]:
    """Places `start:stop` of the block around a slot of a board of this length."""
    if size is None:
        return 0, length
    start = origin + (slot - origin) // size * size
    return start, min(start + size, length)
