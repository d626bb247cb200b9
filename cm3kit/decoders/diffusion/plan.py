"""What the decoder is going to do with a board, without a model."""

from __future__ import annotations

from collections import Counter

from cm3kit.decoders.diffusion.blocks import blocks_of, open_slots
from cm3kit.decoders.diffusion.phases import make_modifiers, plan_block
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.types import Board


def plan(board: Board, config: DiffusionConfig) -> list[list[int]]:
    """How many slots each pass of each block is to write; blocks without open slots are left out.

    A threshold may write more at a pass, an early end saves passes, and remasking adds some. What
    the ancestral sampler draws by lot is given at its mean.

    Raises:
        ConfigError: the board is malformed (`bad_value`) or the quota is unknown (`unknown_name`), or there are
            more ascending blocks than steps (`bad_config`).
    """
    slots = open_slots(board)
    if not slots:
        return []
    blocks = blocks_of(board, config)
    windows = Counter(blocks.around(slot) for slot in slots)
    remasker, _ = make_modifiers(config)
    return [
        plan_block(config, blanks, remasker, blocks.later(window))
        for window, blanks in sorted(windows.items())
    ]
