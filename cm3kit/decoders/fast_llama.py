"""A lean forward pass of Llama (arXiv:2302.13971) and Qwen3 (arXiv:2505.09388) models, for decoding.

Norm weights are folded into the matrix that follows, the projections of one input are one product, and
rotary embedding is one complex product (RoFormer, arXiv:2104.09864, eq. 14).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from cm3kit.decoders.cache import Cache, Write
from cm3kit.decoders.kernels import Product, check_format, of_prompts, of_steps, pack
from cm3kit.decoders.past import Past
from cm3kit.decoders.prompts import Prompt, in_parts, prefix_mask
from cm3kit.decoders.settings import Precision
from cm3kit.decoders.step_attention import StepAttention, is_fused
from cm3kit.decoders.transfer import upload
from cm3kit.models.attention import row_mask
from cm3kit.models.plain import DecoderWeights, device_of
from cm3kit.models.quantized import is_quantized
from cm3kit.models.timestep import is_timed

ROWS = 256  # of a prompt, for which its products are tuned
WIDE = 256  # numbers of a key of a position from which on reading values across gains more than writing them costs
TOGETHER = 4096  # ids of prompts that go through the layers at once, which bounds memory
STATIC_ROPE = ("default", "linear", "llama3", "yarn")

# From a layer's index and its projected heads to the attended values.
Attend = Callable[[int, Tensor], Tensor]


class Engine(Protocol):
    """The interface of a model for the causal decoder."""

    ahead: bool
    """Whether steps are queued on a device that runs beside the host, which is not to wait for what was drawn."""

    @property
    def window(self) -> int:
        """Most positions of a row."""

    def open(self, slots: int, capacity: int) -> Cache:
        """A cache for so many rows of so many positions."""

    def prefill(self, cache: Cache, slot: int, ids: Sequence[int], prefix: int = 0) -> Tensor:
        """Put a prompt into a slot; logits (V,) after its last id. The first `prefix` ids look at one another."""

    def prefill_all(self, cache: Cache, prompts: Sequence[Prompt]) -> Tensor:
        """Put prompts into their slots; logits (N, V) after the last id of each, as `prefill` gives them."""

    def step(self, cache: Cache, write: Write, ids_S: Tensor) -> Tensor:
        """Put one id into every slot; logits (S, V) after it."""

    def score(self, ids: Sequence[int], prefix: int = 0) -> Tensor:
        """Logits (T, V) after each id, without a cache."""


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    head_scale_1HD: Tensor | None


def supports(model: DecoderWeights) -> bool:
    """Whether `LeanEngine` computes exactly this architecture."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in ("llama", "qwen3")
        and config.hidden_act == "silu"
        and not getattr(config, "attention_bias", False)
        and not getattr(config, "mlp_bias", False)
        and not getattr(config, "use_sliding_window", False)
        and rope.get("rope_type", "default") in STATIC_ROPE
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and not is_timed(model)
        and not is_quantized(model)
    )


class LeanEngine:
    """Reads the weights of a transformers module once, and runs without it.

    Args:
        model: a model that `supports` accepts, or its weights alone (`models.plain`).
        vocab_size: logits are computed for this many ids, from 0.
        precision: number format of the weights; `kernels.MIXED` packs those of prompts for themselves.
        rows: rows of a step, for which the products are tuned.
    """

    def __init__(self, model: DecoderWeights, vocab_size: int, precision: Precision, rows: int) -> None:
        config, body = model.config, model.model
        self.window, self.precision = int(config.max_position_embeddings), precision
        check_format(precision, device_of(model))
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = int(body.layers[0].self_attn.head_dim)
        self.device = device_of(model)
        self.ahead = self.device.type != "cpu"
        self._fused, self._across = self._ways_to_attend()
        self._attend_step = StepAttention(self.heads, self.kv_heads, self.head_dim)
        # Where memory is scarce, no copy in fp32 lies beside the products' own weights.
        dtype = torch.bfloat16 if self.ahead and precision == "bf16" else torch.float32
        self.embed_VD = body.embed_tokens.weight.detach().to(self.device, dtype)
        self._mean = 1 / config.hidden_size
        self._eps = torch.tensor(config.rms_norm_eps, device=self.device)
        self._cis = _rotations(body.rotary_emb, self.window).to(self.device)
        with torch.no_grad():
            steps, prompts = of_steps(precision), of_prompts(precision)
            self.layers = [self._read(layer, steps, rows) for layer in body.layers]
            self._prompt_layers = self.layers
            if prompts != steps:
                self._prompt_layers = [self._read(layer, prompts, ROWS) for layer in body.layers]
            head_VD = model.get_output_embeddings().weight[:vocab_size] * body.norm.weight
            self.head = self._pack(head_VD, steps, rows)

    def _ways_to_attend(self) -> tuple[bool, bool]:
        """Whether attention of a step is one kernel, and else whether values lie across."""
        group = self.heads // self.kv_heads
        if self.device.type != "cpu" or is_fused(group, self.head_dim, torch.float32):
            return self.device.type == "cpu", False
        # Of many queries a head the usual product of values sums some spans in another order.
        return False, self.kv_heads * self.head_dim >= WIDE or group > 2

    def _pack(self, weight_NK: Tensor, precision: Precision, rows: int) -> Product:
        return pack(weight_NK.to(self.device), precision, rows)

    def _read(self, layer: Any, precision: Precision, rows: int) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        scale = self.head_dim**-0.5
        head_scale_1HD = None
        query_ND, key_ND = attention.q_proj.weight, attention.k_proj.weight
        if hasattr(attention, "q_norm"):
            scales = [attention.q_norm.weight * scale] * self.heads
            scales += [attention.k_norm.weight] * self.kv_heads
            head_scale_1HD = _interleave(torch.stack(scales).float(), self.head_dim, 1)[None].to(self.device)
        else:
            query_ND = query_ND * scale
        rotated_ND = _interleave(torch.cat([query_ND, key_ND]), self.head_dim, 0)
        qkv_ND = torch.cat([rotated_ND, attention.v_proj.weight]) * layer.input_layernorm.weight
        gate_up_ND = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        gate_up_ND = gate_up_ND * layer.post_attention_layernorm.weight
        return _Layer(
            qkv=self._pack(qkv_ND, precision, rows),
            out=self._pack(attention.o_proj.weight, precision, rows),
            gate_up=self._pack(gate_up_ND, precision, rows),
            down=self._pack(mlp.down_proj.weight, precision, rows),
            head_scale_1HD=head_scale_1HD,
        )

    def open(self, slots: int, capacity: int) -> Cache:
        """A cache for so many rows of so many positions."""
        size = len(self.layers), slots, self.kv_heads, capacity, self.head_dim
        return Cache(*size, self.device, across=self._across, fused=self._fused)

    def prefill(self, cache: Cache, slot: int, ids: Sequence[int], prefix: int = 0) -> Tensor:
        """Put a prompt into a slot; logits (V,) after its last id. The first `prefix` ids look at one another."""
        return self._prefill(cache, [Prompt(slot, ids, prefix)])[0]

    def prefill_all(self, cache: Cache, prompts: Sequence[Prompt]) -> Tensor:
        """Put prompts into their slots; logits (N, V) after the last id of each, as `prefill` gives them."""
        # Only where products are steady is a prompt the same whichever prompts are beside it.
        most = TOGETHER if self.device.type == "cpu" and self.precision != "int8" else 0
        return torch.cat([self._prefill(cache, part) for part in in_parts(prompts, most)])

    @torch.no_grad()
    def _prefill(self, cache: Cache, prompts: Sequence[Prompt]) -> Tensor:
        lengths = [len(each.ids) for each in prompts]
        masks = [prefix_mask(len(each.ids), each.prefix, self.device) for each in prompts]

        def attend(index: int, heads_MHD: Tensor) -> Tensor:
            found = []
            for each, heads_THD, seen_TT in zip(prompts, torch.split(heads_MHD, lengths), masks, strict=True):
                cache.put(index, each.slot, heads_THD[:, self.heads :].transpose(0, 1))
                found.append(self._attend_causally(heads_THD, seen_TT))
            return torch.cat(found)

        x_MD = self._embed(upload([id for each in prompts for id in each.ids], self.device))
        cis_M1R = torch.cat([self._cis[:length] for length in lengths])
        last_N = upload(lengths, self.device).cumsum(0) - 1
        return self._logits(self._layers(x_MD, cis_M1R, attend, self._prompt_layers, last_N))

    @torch.no_grad()
    def score(self, ids: Sequence[int], prefix: int = 0) -> Tensor:
        """Logits (T, V) after each id, without a cache. The first `prefix` ids look at one another."""
        seen_TT = prefix_mask(len(ids), prefix, self.device)
        return self._logits(
            self._run(ids, lambda index, heads_THD: self._attend_causally(heads_THD, seen_TT))
        )

    @torch.no_grad()
    def encode(
        self,
        ids_BT: Tensor,
        lengths: Sequence[int],
        unseen: int | None = None,
        wanted_M: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of rows padded on the right, where every place sees all of its own row.

        Places that hold the id `unseen` are seen by themselves alone.
        They are those before the final norm, and mean nothing at padding; `logits_of` reads them.
        With `wanted_M`, flat places, those of these alone, (M, D).
        """
        return self.extend(ids_BT, row_mask(ids_BT.to(self.device), lengths, unseen), wanted_M=wanted_M)

    @torch.no_grad()
    def extend(
        self, ids_BQ: Tensor, seen_B1QK: Tensor | None, start: int = 0, past: Past | None = None,
        wanted_M: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden states (B, Q, D), or (M, D), as `encode` gives them, of the places from `start` on.

        Args:
            seen_B1QK: True where a query may look; keys are those in `past`, then those of `ids_BQ`; None is all.
            past: keys and values of this engine, to which those of `ids_BQ` are added; into an empty one goes a prompt.
        """
        rows, width = ids_BQ.shape
        first = past is not None and not past.get_seq_length()
        layers = self._prompt_layers if first else self.layers

        def attend(index: int, heads_MHD: Tensor) -> Tensor:
            heads_BHQD = heads_MHD.view(rows, width, -1, self.head_dim).transpose(1, 2)
            q, k, v = torch.split(heads_BHQD, [self.heads, self.kv_heads, self.kv_heads], dim=1)
            if past is not None:
                k, v = past.update(k, v, index)
            grouped = self.heads != self.kv_heads
            seen = scaled_dot_product_attention(q, k, v, attn_mask=seen_B1QK, scale=1.0, enable_gqa=grouped)
            return seen.transpose(1, 2).reshape(rows * width, -1)

        place_Q = torch.arange(start, start + width, device=self.device)
        cis_M1R = self._cis[place_Q.clamp(max=self.window - 1)].repeat(rows, 1, 1)
        x_MD = self._embed(ids_BQ.reshape(-1).to(self.device))
        hidden_MD = self._layers(x_MD, cis_M1R, attend, layers, wanted_M)
        return hidden_MD.view(rows, width, -1) if wanted_M is None else hidden_MD

    @torch.no_grad()
    def logits_of(self, hidden_MD: Tensor) -> Tensor:
        """Logits (M, V) of hidden states that `encode` gave."""
        return self._logits(hidden_MD)

    def step(self, cache: Cache, write: Write, ids_S: Tensor) -> Tensor:
        """Put one id into every slot; logits (S, V) after it."""
        return self.verify(cache, [write], ids_S[None])[0]

    @torch.no_grad()
    def verify(self, cache: Cache, writes: Sequence[Write], ids_QS: Tensor) -> Tensor:
        """Put Q ids into every slot, each behind the one before; logits (Q, S, V) after them.

        On a CPU, where products are steady (`kernels`), they have the bits of as many steps: attention is that of a
        step, one id after another.
        """
        steps, slots = ids_QS.shape

        def attend(index: int, heads_MHD: Tensor) -> Tensor:
            found = []
            # Of later ids no earlier one sees anything, so all are written first.
            for write, heads_SHD in zip(writes, torch.split(heads_MHD, slots), strict=True):
                queries_SHD, kv_SHD = heads_SHD[:, : self.heads], heads_SHD[:, self.heads :]
                found.append((write, queries_SHD, *cache.write(index, write, kv_SHD)))
            return torch.cat([self._attend_step(*each) for each in found])

        positions_M = torch.cat([write.positions_S for write in writes])
        cis_M1R = self._cis.index_select(0, positions_M.clamp(max=self.window - 1))
        x_MD = self._embed(ids_QS.reshape(-1))
        return self._logits(self._layers(x_MD, cis_M1R, attend, self.layers)).view(steps, slots, -1)

    def _attend_causally(self, heads_THD: Tensor, seen_TT: Tensor | None) -> Tensor:
        """Attended values (T, H * D); each id looks left unless `seen_TT` says otherwise."""
        heads_HTD = heads_THD.transpose(0, 1)
        q, k, v = torch.split(heads_HTD, [self.heads, self.kv_heads, self.kv_heads])
        grouped = self.heads != self.kv_heads
        seen = scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=seen_TT, is_causal=seen_TT is None, scale=1.0, enable_gqa=grouped
        )  # fmt: skip
        return seen[0].transpose(0, 1).reshape(len(heads_THD), -1)

    def _run(self, ids: Sequence[int], attend: Attend) -> Tensor:
        x_TD = self._embed(torch.tensor(ids, device=self.device))
        return self._layers(x_TD, self._cis[: len(ids)], attend, self.layers)

    def _embed(self, ids_M: Tensor) -> Tensor:
        rows_MD: Tensor = self.embed_VD.index_select(0, ids_M)
        return rows_MD.float()

    def _layers(
        self, x_MD: Tensor, cis_M1R: Tensor, attend: Attend, layers: Sequence[_Layer], wanted: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """Hidden states of all rows, or of those wanted alone, which alone go through the end of the last layer."""
        rotated, all_heads = self.heads + self.kv_heads, self.heads + 2 * self.kv_heads
        for index, layer in enumerate(layers):
            heads_MHD = layer.qkv(self._norm(x_MD, self._mean)).view(-1, all_heads, self.head_dim)
            turned = heads_MHD[:, :rotated]
            if layer.head_scale_1HD is not None:
                turned.copy_(self._norm(turned, 1 / self.head_dim) * layer.head_scale_1HD)
            torch.view_as_complex(turned.view(-1, rotated, self.head_dim // 2, 2)).mul_(cis_M1R)
            attended_MD = attend(index, heads_MHD)
            if wanted is not None and layer is layers[-1]:
                x_MD, attended_MD = x_MD.index_select(0, wanted), attended_MD.index_select(0, wanted)
            x_MD = x_MD + layer.out(attended_MD)
            gate, up = layer.gate_up(self._norm(x_MD, self._mean)).chunk(2, -1)
            x_MD = x_MD + layer.down(silu(gate).mul_(up))
        return x_MD

    def _logits(self, x_MD: Tensor) -> Tensor:
        return self.head(self._norm(x_MD, self._mean))

    def _norm(self, x: Tensor, mean: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._eps, norm, norm, value=mean).rsqrt_()


def _rotations(rotary: Any, window: int) -> Tensor:
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
