"""The unmasking plan of a canvas, computed without a model."""

from __future__ import annotations

from collections import Counter

from cm3kit.decoders.diffusion.blocks import blocks_of, masked_positions
from cm3kit.decoders.diffusion.samplers import make_modifiers, plan_block
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.types import Canvas


def plan(canvas: Canvas, config: DiffusionConfig) -> list[list[int]]:
    """How many slots each pass of each block is to write; blocks without open slots are left out.

    A threshold may write more at a pass, an early end saves passes, and remasking adds some. What
    the ancestral sampler draws at random is given by its mean.

    Raises:
        ConfigError: the canvas is malformed (`bad_value`) or the schedule is unknown (`unknown_name`), or there are
            more ascending blocks than steps (`bad_config`).
    """
    # What is to be written does not depend on the mask's id.
    flat = canvas.flatten(-1)
    slots = masked_positions(flat)
    if not slots:
        return []
    blocks = blocks_of(flat, config)
    windows = Counter(blocks.around(slot) for slot in slots)
    remasker, _ = make_modifiers(config)
    return [
        plan_block(config, blanks, remasker, blocks.later(window))
        for window, blanks in sorted(windows.items())
    ]
