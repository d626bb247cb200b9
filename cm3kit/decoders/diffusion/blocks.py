"""Which places of a board are to be written, and the blocks that they are written in."""

from __future__ import annotations

from collections.abc import Sequence

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


def block_origin(slots: Sequence[int], config: DiffusionConfig) -> int:
    """Where the first block starts: at the first open slot, or on the grid that an exact cache is kept by."""
    return slots[0] if slots and config.block_size and config.cache != "exact" else 0


def block_of(slot: int, origin: int, size: int | None, length: int) -> tuple[int, int]:
    """Places `start:stop` of the block around a slot of a board of this length."""
    if size is None:
        return 0, length
    start = origin + (slot - origin) // size * size
    return start, min(start + size, length)
