"""The engine of a model: `LeanEngine` where it computes it, on CUDA `StaticEngine`, else the module itself."""

from __future__ import annotations

from cm3kit.decoders.fast_llama import Engine, LeanEngine, supports
from cm3kit.decoders.settings import CompileName, Precision
from cm3kit.decoders.static_llama import StaticEngine
from cm3kit.models.plain import DecoderWeights, device_of


def make_engine(
    model: DecoderWeights, vocab_size: int, precision: Precision, rows: int, compile: CompileName = "auto"
) -> Engine:
    """The fastest engine that computes this model; see `LeanEngine` and `StaticEngine` for the arguments."""
    if supports(model):
        if device_of(model).type == "cuda":
            return StaticEngine(model, vocab_size, precision, rows, compile)
        return LeanEngine(model, vocab_size, precision, rows)
    from cm3kit.decoders.hf_engine import ModuleEngine  # it imports transformers

    return ModuleEngine(model, vocab_size, precision)
