"""The engine of a model: `LeanEngine` where it computes it, on CUDA `StaticEngine`, else the module itself."""

from __future__ import annotations

from cm3kit.decoders.fast_llama import Engine, LeanEngine, supports
from cm3kit.decoders.settings import CompileName, Precision
from cm3kit.decoders.static_llama import StaticEngine
from cm3kit.models.plain import DecoderWeights, device_of
from cm3kit_tokenizers.errors import ConfigError


def make_engine(
    model: DecoderWeights, vocab_size: int, precision: Precision, rows: int, compile: CompileName = "auto"
) -> Engine:
    """The fastest engine that computes this model; see `LeanEngine` and `StaticEngine` for the arguments.

    Raises:
        ConfigError: `compile` is `on` where there are no steps to compile (`bad_value`).
    """
    device = device_of(model).type
    if supports(model) and device == "cuda":
        return StaticEngine(model, vocab_size, precision, rows, compile)
    if compile == "on":
        raise ConfigError(
            f"compile 'on' is for plain Llama and Qwen3 decoders on a GPU; this is {model.config.model_type!r} on"
            f" {device}. Leave it out.",
            code="bad_value",
        )
    if supports(model):
        return LeanEngine(model, vocab_size, precision, rows)
    from cm3kit.decoders.hf_engine import ModuleEngine  # it imports transformers

    return ModuleEngine(model, vocab_size, precision)
