"""Weights of Llama and Qwen3 as `LeanEngine` multiplies by them.

Norm weights are folded into the matrix that follows, the projections of one input are one product, and each head is
reordered so that rotary embedding is one complex product (RoFormer, arXiv:2104.09864, eq. 14).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cm3kit.decoders.kernels import Product, of_prompts, of_steps, pack, pack_all
from cm3kit.decoders.settings import Precision
from cm3kit.models.plain import DecoderWeights, device_of


@dataclass(frozen=True, slots=True)
class Layer:
    """Products of one layer; `gated` is SiLU of the gate times what it gates."""

    head_scale_1HD: Tensor | None
    qkv: Product
    out: Product
    gated: Product
    down: Product


def read_layers(
    model: DecoderWeights, precision: Precision, rows: int, prompt_rows: int
) -> tuple[list[Layer], list[Layer]]:
    """The layers of steps, tuned for so many rows, and those of prompts; they share weights where they can."""
    steps, prompts, device = of_steps(precision), of_prompts(precision), device_of(model)

    def both(weight_NK: Tensor, gated: bool = False) -> list[Product]:
        weight_NK = weight_NK.to(device)
        if steps == prompts:
            return pack_all(weight_NK, steps, (rows, prompt_rows), gated)
        return [pack(weight_NK, steps, rows, gated), pack(weight_NK, prompts, prompt_rows, gated)]

    found: list[list[Layer]] = []
    for layer in model.model.layers:
        head_scale_1HD, *matrices = _matrices(layer, model.config)
        packed = [both(each, gated=at == 2) for at, each in enumerate(matrices)]
        scale = None if head_scale_1HD is None else head_scale_1HD.to(device)
        found.append([Layer(scale, *products) for products in zip(*packed, strict=True)])
    return [each for each, _ in found], [each for _, each in found]


def _matrices(layer: Any, config: Any) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """Scales of the heads' norms, and the weights of `Layer`."""
    attention, mlp, head_dim = layer.self_attn, layer.mlp, int(layer.self_attn.head_dim)
    scale = head_dim**-0.5
    head_scale_1HD = None
    query_ND, key_ND = attention.q_proj.weight, attention.k_proj.weight
    if hasattr(attention, "q_norm"):
        scales = [attention.q_norm.weight * scale] * config.num_attention_heads
        scales += [attention.k_norm.weight] * config.num_key_value_heads
        head_scale_1HD = _interleave(torch.stack(scales).float(), head_dim, 1)[None]
    else:
        query_ND = query_ND * scale
    rotated_ND = _interleave(torch.cat([query_ND, key_ND]), head_dim, 0)
    qkv_ND = torch.cat([rotated_ND, attention.v_proj.weight]) * layer.input_layernorm.weight
    gate_up_ND = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    gate_up_ND = gate_up_ND * layer.post_attention_layernorm.weight
    return head_scale_1HD, qkv_ND, attention.o_proj.weight, gate_up_ND, mlp.down_proj.weight


def rotations(rotary: Any, window: int) -> Tensor:
    """exp(i t f_r) for each position and frequency, (window, 1, head_dim / 2) complex."""
    angle_TR = torch.outer(
        torch.arange(window, device=rotary.inv_freq.device).float(), rotary.inv_freq.float()
    )
    return torch.polar(torch.full_like(angle_TR, float(rotary.attention_scaling)), angle_TR)[:, None]


def _interleave(weight: Tensor, head_dim: int, dim: int) -> Tensor:
    """Reorder each head so that the two coordinates of a rotation, half a head apart, become adjacent."""
    lead, rest = weight.shape[:dim], weight.shape[dim + 1 :]
    pairs = weight.reshape(*lead, -1, 2, head_dim // 2, *rest)
    return pairs.transpose(dim + 1, dim + 2).reshape(weight.shape)
