"""The engine of a model: `fast_llama.LeanEngine` where it computes it, else the module itself."""

from __future__ import annotations

from cm3kit.decoders.fast_llama import Engine, LeanEngine, supports
from cm3kit.decoders.settings import Precision
from cm3kit.models.plain import DecoderWeights


def make_engine(model: DecoderWeights, vocab_size: int, precision: Precision, rows: int) -> Engine:
    """The fastest engine that computes this model; see `LeanEngine` for the arguments."""
    if supports(model):
        return LeanEngine(model, vocab_size, precision, rows)
    from cm3kit.decoders.hf_engine import ModuleEngine  # it imports transformers

    return ModuleEngine(model, vocab_size, precision)
