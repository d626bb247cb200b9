"""Which positions of a canvas are to be written, and the blocks that they are written in."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, chain

from cm3kit.decoders.diffusion.schedules import ascending_blocks
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.types import Flat


def masked_positions(flat: Flat) -> list[int]:
    """Masked positions of all spans, ascending."""
    return [position for each in flat.ranges for position in each]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a canvas of `length` positions.

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
        """The key that canvases share if they can go from block to block together."""
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


def blocks_of(flat: Flat, config: DiffusionConfig) -> Blocks:
    """The blocks of a canvas.

    Equal ones start at the first masked position, or on the grid that an exact cache is kept by; with the causal one at
    the start of each gap.

    Raises:
        ConfigError: there are more ascending blocks than steps (`bad_config`).
    """
    slots, length = masked_positions(flat), len(flat.ids)
    if config.ascending_blocks is not None and slots:
        counts = [sum(each) for each in ascending_blocks(len(slots), config.ascending_blocks)]
        firsts = [0, *accumulate(counts[:-1])]
        return Blocks(length, cuts=tuple(slots[first] for first in firsts))
    if config.cache == "causal" and config.block_size is not None:
        size = config.block_size
        windows = [
            (start, min(start + size, each.stop))
            for each in flat.ranges
            for start in range(each.start, each.stop, size)
        ]
        return Blocks(length, size=size, windows=tuple(windows))
    on_grid = not slots or config.block_size is None or config.cache == "exact"
    return Blocks(length, 0 if on_grid else slots[0], config.block_size)


def block_of(slot: int, origin: int, size: int | None, length: int) -> tuple[int, int]:
    """Positions `start:stop` of the block around a slot of a canvas of this length."""
    if size is None:
        return 0, length
    start = origin + (slot - origin) // size * size
    return start, min(start + size, length)
