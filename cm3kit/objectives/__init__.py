"""Training objectives, from clean documents to examples; importing this registers all of them."""

from importlib import import_module
from pkgutil import iter_modules

from cm3kit.objectives.block_diffusion import BlockDiffusion
from cm3kit.objectives.causal_blocks import CausalBlocks
from cm3kit.objectives.causal_mask import CausalMask
from cm3kit.objectives.hints import SizeHints
from cm3kit.objectives.hybrid import Hybrid
from cm3kit.objectives.masked_diffusion import MaskedDiffusion
from cm3kit.objectives.next_token import NextToken
from cm3kit.objectives.spans import PRESETS, Preset

__all__ = [
    "PRESETS",
    "BlockDiffusion",
    "CausalBlocks",
    "CausalMask",
    "Hybrid",
    "MaskedDiffusion",
    "NextToken",
    "Preset",
    "SizeHints",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
