"""Ways to fill a canvas."""

from cm3kit.decoders.causal.autoregressive import Autoregressive
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.settings import DecodeConfig, Sampling

__all__ = ["Autoregressive", "DecodeConfig", "Grammar", "Sampling"]
