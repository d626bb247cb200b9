"""A folder of diffusers' `VQModel`: aMUSEd, Meissonic, diffusers' latent diffusion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vq.families.base import Mapped, Source, families

OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
ATTENDS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
FIXED = {"act_fn": "silu", "norm_type": "group", "in_channels": 3, "out_channels": 3}
UNTOLD = 32  # diffusers' default sample_size, which need not be the size of pictures


@families("diffusers")
class Diffusers:
    """The names equal ours; the settings define the conventions."""

    title = "diffusers VQModel (aMUSEd, Meissonic)"

    def detect(self, source: Source) -> bool:
        """Detect by the names of the encoder's levels."""
        return "encoder.down_blocks.0.resnets.0.conv1.weight" in source.tensors

    def convert(self, source: Source) -> Mapped:
        """The same tensors, with the attention names of older versions updated."""
        hints = source.hints
        if hints.get("_class_name") != "VQModel":
            raise ModelError(
                f"{source.path}: config.json is of {hints.get('_class_name', 'nothing')!r}, not of a VQModel.",
                code="bad_checkpoint",
            )
        other = [f"{key} = {hints[key]!r}" for key, value in FIXED.items() if hints.get(key, value) != value]
        if other:
            raise ModelError(
                f"{source.path}: {other[0]} is not supported; expected {FIXED}.", code="bad_checkpoint"
            )
        latent = _number(hints, "latent_channels", 3)
        told = _number(hints, "sample_size", UNTOLD)
        amused = _is_amused(hints)
        settings: dict[str, Any] = {
            "resolution": told if told > UNTOLD else 256,
            "channels": tuple(hints.get("block_out_channels", (64,))),
            "layers_per_block": _number(hints, "layers_per_block", 1),
            "codes": _number(hints, "num_vq_embeddings", 256),
            "code_dim": hints.get("vq_embed_dim") or latent,
            "latent_channels": latent,
            "norm_groups": _number(hints, "norm_num_groups", 32),
            "attention": hints.get("mid_block_add_attention", True),
            "attention_levels": _attention_levels(source),
            "pixel_range": "unit" if amused else "signed",
        }
        notes = ["pixels are assumed to be in [0, 1], as for aMUSEd and Meissonic"] if amused else []
        if told <= UNTOLD:
            notes.append("config.json does not record the size of pictures: 256 × 256 is assumed")
        network = {_renamed(name): each for name, each in source.tensors.items()}
        cause = "config.json is of another checkpoint, or the file is truncated."
        return Mapped(settings, network, {}, cause, tuple(notes))


def _number(hints: Mapping[str, Any], key: str, default: int) -> int:
    value = hints.get(key, default)
    return value if isinstance(value, int) else default


def _is_amused(hints: Mapping[str, Any]) -> bool:
    """No attention and 64-dimensional codes: the pipelines of aMUSEd and Meissonic do not normalise pixels."""
    return hints.get("mid_block_add_attention") is False and hints.get("vq_embed_dim") == 64


def _attention_levels(source: Source) -> tuple[int, ...]:
    down = list(source.hints.get("down_block_types", ("DownEncoderBlock2D",)))
    up = list(source.hints.get("up_block_types", ("UpDecoderBlock2D",)))
    mirrored = [each.replace("Down", "Up").replace("Encoder", "Decoder") for each in down[::-1]]
    if any(each not in ATTENDS for each in down) or up != mirrored:
        raise ModelError(
            f"{source.path}: blocks {down} and {up} are not supported; expected {', '.join(ATTENDS)} and their mirror.",
            code="bad_checkpoint",
        )
    return tuple(level for level, each in enumerate(down) if ATTENDS[each])


def _renamed(name: str) -> str:
    return re.sub(
        r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.",
        lambda found: f"{found[1]}{OLD[found[2]]}.",
        name,
    )
