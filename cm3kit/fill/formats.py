"""Which number format each decoder of a model is computed in unless told otherwise, and what that costs."""

from __future__ import annotations

from typing import Any

from cm3kit.decoders.precision import bits_lost
from cm3kit.fill.defaults import DIFFUSION
from cm3kit.fill.kit import Kit
from cm3kit.fill.options import GenerateOptions
from cm3kit.fill.parts import Parts, diffusion_weights
from cm3kit.fill.tokenizing import AUTO


def formats(kit: Kit) -> dict[str, dict[str, Any]]:
    """For each decoder, and the image tokenizer, the format that `auto` is here, and bits per token lost by it.

    Bits are measured now, on a few hundred ids that the model writes (`decoders.precision.bits_lost`). In a faster
    format some codes of pictures would be others, so that the image tokenizer stays in fp32.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in kit.parts.defaults.decoders:
        chosen = kit.record("text", GenerateOptions(decoder=name))["precision"]
        found[name] = {"precision": chosen, "bits_per_token_lost": _lost(kit.parts, name, chosen)}
    if kit.vocab.image_size:
        found["image"] = {"precision": AUTO, "why": "others change codes"}
    return found


def _lost(parts: Parts, decoder: str, precision: Any) -> float:
    if precision == "fp32":
        return 0.0
    diffusion = decoder == DIFFUSION
    model = diffusion_weights(parts) if diffusion else parts.weights
    return bits_lost(model, len(parts.vocab), precision, parts.vocab.mask if diffusion else None)
