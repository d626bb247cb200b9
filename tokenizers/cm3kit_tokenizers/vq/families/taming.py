"""taming-transformers' VQGAN and others with its names: latent diffusion, Chameleon, Anole, Lumina, Liquid, Gumbel f8.

The network is that of diffusers' `VQModel`, in which decoder levels are numbered in reverse and attention has linear
layers instead of 1 × 1 convolutions. Its shape is inferred from the tensors, and compared with the YAML if there is
one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vq.families.base import Mapped, Source, families

DROPPED = ("loss.", "colorize", "model_ema.", "perceptual_loss.", "discriminator.")
RENAMED = (
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.mid\.block_([12])\.", lambda found: f".mid_block.resnets.{int(found[1]) - 1}."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1."),
    (r"_blocks\.(\d+)\.block\.", r"_blocks.\1.resnets."),
    (r"_blocks\.(\d+)\.attn\.", r"_blocks.\1.attentions."),
    (r"\.downsample\.conv\.", ".downsamplers.0.conv."),
    (r"\.upsample\.conv\.", ".upsamplers.0.conv."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OTHERS = {
    "adaptive": "Open-MAGVIT2, which has another decoder",
    "latent_tokens": "TiTok, which is a transformer",
    "encoder.blocks.": "OpenAI's DALL-E, which is another network",
    "encoder.layers.": "a transformer",
}


@families("taming")
class Taming:
    """Nearest code, or the most likely one if there is a Gumbel projection."""

    title = "taming-transformers, latent diffusion, Chameleon, Anole, Liquid"

    def detect(self, source: Source) -> bool:
        """Detect by the names of the encoder's levels."""
        return any(re.match(r"encoder\.down\.\d+\.block\.", name) for name in source.tensors)

    def convert(self, source: Source) -> Mapped:
        """The network with the quantizer inferred from its codebook."""
        return convert_taming(source, "vq")


def convert_taming(source: Source, quantizer: str) -> Mapped:
    """Tensors renamed from taming's to diffusers' names, with the settings inferred from their shapes."""
    tensors = {
        name: each for name, each in with_averages(source.tensors).items() if not name.startswith(DROPPED)
    }
    own: dict[str, Tensor] = {}
    if "quantize.proj.weight" in tensors:
        quantizer = "gumbel_argmax"
        own = {
            "proj.weight": tensors.pop("quantize.proj.weight").flatten(1),
            "proj.bias": tensors.pop("quantize.proj.bias"),
        }
        tensors["quantize.embedding.weight"] = tensors.pop("quantize.embed.weight")
    if "quantize.embedding.weight" not in tensors:
        raise ModelError(
            f"{source.path} has no codebook (quantize.embedding.weight): it is an autoencoder without codes, or its"
            " quantizer needs none; there is nothing to convert.",
            code="bad_checkpoint",
        )
    shape = shape_of(tensors, source)
    levels = len(shape["channels"])
    network = {renamed(name, levels): _linear(name, each) for name, each in tensors.items()}
    size = _group(source.hints).get("resolution")
    notes = (
        ()
        if isinstance(size, int)
        else ("no settings beside the weights: pictures of 256 × 256 are assumed",)
    )
    settings = {**shape, "resolution": size if isinstance(size, int) else 256, "quantizer": quantizer}
    return Mapped(settings, network, own, _cause(source, shape), notes)


def with_averages(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights replaced by their moving averages, which lightning stores under the same names without dots."""
    return {
        name: tensors.get("model_ema." + name.replace(".", ""), each)
        for name, each in tensors.items()
        if not name.startswith("model_ema.")
    }


def shape_of(tensors: Mapping[str, Tensor], source: Source) -> dict[str, Any]:
    """Fields of the configuration inferred from the tensors."""
    blocks = {(int(found[1]), int(found[2])) for name in tensors if (found := _BLOCK.match(name))}
    levels = 1 + max((level for level, _ in blocks), default=-1)
    try:
        return {
            "channels": tuple(
                tensors[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)
            ),
            "layers_per_block": 1 + max(block for _, block in blocks),
            "codes": tensors["quantize.embedding.weight"].shape[0],
            "code_dim": tensors["quantize.embedding.weight"].shape[1],
            "latent_channels": tensors["encoder.conv_out.weight"].shape[0],
            "norm_groups": 32,
            "attention": "encoder.mid.attn_1.q.weight" in tensors,
            "attention_levels": tuple(
                level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in tensors
            ),
        }
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{source.path} lacks {error.args[0] if isinstance(error, KeyError) else 'its encoder'}, without which"
            f" its shape is unknown. Likely cause: {_cause(source, {})}",
            code="bad_checkpoint",
        ) from error


_BLOCK = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.")


def renamed(name: str, levels: int) -> str:
    """Diffusers' name of a tensor from its name in taming."""
    name = re.sub(r"decoder\.up\.(\d+)\.", lambda f: f"decoder.up_blocks.{levels - 1 - int(f[1])}.", name)
    for pattern, other in RENAMED:
        name = re.sub(pattern, other, name)
    head, found, tail = name.partition(".attentions.")
    if found:
        index, part, rest = tail.split(".", 2)
        name = f"{head}.attentions.{index}.{ATTENTION.get(part, part)}.{rest}"
    return name


def _linear(name: str, tensor: Tensor) -> Tensor:
    """1 × 1 convolutions of attention as matrices."""
    attention = ".attn" in name and tensor.ndim == 4
    return tensor[:, :, 0, 0].contiguous() if attention else tensor


def _group(hints: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the network: in model.params, model.init_args, a first_stage_config in these, or at top level."""
    inner: Any = hints.get("model", hints)
    for key in ("params", "init_args", "first_stage_config", "params"):
        inner = inner.get(key, inner) if isinstance(inner, Mapping) else {}
    if not isinstance(inner, Mapping):
        return {}
    network = inner.get("ddconfig", {})
    return {**inner, **(network if isinstance(network, Mapping) else {})}


def _cause(source: Source, shape: Mapping[str, Any]) -> str:
    """The likely cause if the tensors do not fit."""
    known, wrong = _group(source.hints), []
    channels = shape.get("channels", ())
    told = {
        "n_embed": shape.get("codes"),
        "embed_dim": shape.get("code_dim"),
        "z_channels": shape.get("latent_channels"),
        "num_res_blocks": shape.get("layers_per_block"),
        "ch": channels[0] // (known.get("ch_mult") or [1])[0] if channels else None,
    }
    for name, value in told.items():
        if value is not None and isinstance(known.get(name), int) and known[name] != value:
            wrong.append(f"{name} = {known[name]} there, {value} in the weights")
    if wrong:
        return f"the settings are of another checkpoint ({'; '.join(wrong)})."
    if known.get("double_z") is True:
        return "double_z: it is an autoencoder without codes."
    other = next(
        (kind for part, kind in OTHERS.items() if any(part in name for name in source.tensors)), None
    )
    return f"it is {other}." if other else "the file is truncated, or of another family; see --family."
