"""How clean documents become questions; importing this names the objectives in the registry."""

from cm3kit.objectives.causal_mask import CausalMask
from cm3kit.objectives.next_token import NextToken
from cm3kit.objectives.spans import PRESETS, Preset

__all__ = ["PRESETS", "CausalMask", "NextToken", "Preset"]
