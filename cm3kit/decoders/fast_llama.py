"""A lean forward pass of Llama (arXiv:2302.13971) and Qwen3 (arXiv:2505.09388) models, for decoding.

Norm weights are folded into the matrix that follows, the projections of one input are one product, and
rotary embedding is one complex product (RoFormer, arXiv:2104.09864, eq. 14).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cm3kit.decoders.cache import Cache, Write
from cm3kit.decoders.kernels import SHAPES, check_format, of_prompts, of_steps, pack
from cm3kit.decoders.lean_weights import Layer, read_layers, rotations
from cm3kit.decoders.past import Past
from cm3kit.decoders.prompts import Prompt, in_parts, prefix_mask
from cm3kit.decoders.settings import Precision
from cm3kit.decoders.step_attention import StepAttention, attend_left, is_fused
from cm3kit.decoders.transfer import upload
from cm3kit.models.attention import row_mask
from cm3kit.models.plain import DecoderWeights, device_of
from cm3kit.models.quantized import is_quantized
from cm3kit.models.timestep import is_timed

ROWS = SHAPES[-1]  # of a prompt, that go through what is computed row by row at once
WIDE = 256  # numbers of a key of a position from which on reading values across gains more than writing them costs
TOGETHER = 4096  # ids of prompts or rows that go through the layers at once, which bounds memory
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
        self.kept, self.fused, self._across = self._ways_to_attend()
        self._attend_step = StepAttention(self.heads, self.kv_heads, self.head_dim)
        # Where memory is scarce, no copy in fp32 lies beside the products' own weights.
        dtype = torch.bfloat16 if self.ahead and precision == "bf16" else torch.float32
        self.embed_VD = body.embed_tokens.weight.detach().to(self.device, dtype)
        # Only where products are steady is a row the same whichever rows are beside it.
        self._together = TOGETHER if self.device.type == "cpu" and precision != "int8" else 0
        self._mean = 1 / config.hidden_size
        self._eps = torch.tensor(config.rms_norm_eps, device=self.device)
        self._cis = rotations(body.rotary_emb, self.window).to(self.device)
        with torch.no_grad():
            self.layers, self._prompt_layers = read_layers(model, precision, rows, ROWS)
            head_VD = model.get_output_embeddings().weight[:vocab_size] * body.norm.weight
            self.head = pack(head_VD.to(self.device), of_steps(precision), rows)

    def _ways_to_attend(self) -> tuple[torch.dtype, bool, bool]:
        """The format of keys and values; whether attention of a step is one kernel; else whether values lie across."""
        if self.device.type != "cpu":
            return torch.float32, False, False
        group = self.heads // self.kv_heads
        # Where prompts are in bf16, nothing is gained by keeping more of their keys and values.
        kept = torch.bfloat16 if of_prompts(self.precision) == "bf16" else torch.float32
        if is_fused(group, self.head_dim, kept):
            return kept, True, False
        # Of many queries a head the usual product of values sums some spans in another order.
        return torch.float32, False, self.kv_heads * self.head_dim >= WIDE or group > 2

    def open(self, slots: int, capacity: int) -> Cache:
        """A cache for so many rows of so many positions."""
        size = len(self.layers), slots, self.kv_heads, capacity, self.head_dim
        return Cache(*size, self.device, self.kept, self._across, self.fused)

    def prefill(self, cache: Cache, slot: int, ids: Sequence[int], prefix: int = 0) -> Tensor:
        """Put a prompt into a slot; logits (V,) after its last id. The first `prefix` ids look at one another."""
        return self._prefill(cache, [Prompt(slot, ids, prefix)])[0]

    def prefill_all(self, cache: Cache, prompts: Sequence[Prompt]) -> Tensor:
        """Put prompts into their slots; logits (N, V) after the last id of each, as `prefill` gives them."""
        parts = in_parts(prompts, lambda each: len(each.ids), self._together)
        return torch.cat([self._prefill(cache, part) for part in parts])

    @torch.no_grad()
    def _prefill(self, cache: Cache, prompts: Sequence[Prompt]) -> Tensor:
        lengths = [len(each.ids) for each in prompts]
        masks = [prefix_mask(len(each.ids), each.prefix, self.device) for each in prompts]

        def attend(index: int, heads_MHD: Tensor) -> Tensor:
            found = []
            for each, heads_THD, seen_TT in zip(prompts, torch.split(heads_MHD, lengths), masks, strict=True):
                cache.put(index, each.slot, heads_THD[:, self.heads :].transpose(0, 1))
                found.append(self._attend_in_row(heads_THD, seen_TT))
            return torch.cat(found)

        x_MD = self._embed(upload([id for each in prompts for id in each.ids], self.device))
        cis_M1R = torch.cat([self._cis[:length] for length in lengths])
        last_N = upload(lengths, self.device).cumsum(0) - 1
        return self._logits(self._layers(x_MD, cis_M1R, attend, self._prompt_layers, last_N))

    @torch.no_grad()
    def score(self, ids: Sequence[int], prefix: int = 0) -> Tensor:
        """Logits (T, V) after each id, without a cache. The first `prefix` ids look at one another."""
        seen_TT = prefix_mask(len(ids), prefix, self.device)
        return self._logits(self._run(ids, lambda index, heads_THD: self._attend_in_row(heads_THD, seen_TT)))

    @torch.no_grad()
    def encode(self, ids_BT: Tensor, lengths: Sequence[int], unseen: int | None = None) -> Tensor:
        """Hidden states (B, T, D) of rows padded on the right, where every place sees all of its own row.

        Places that hold the id `unseen` are seen by themselves alone. The final norm comes later (`logits_of`).
        """
        return self.extend(ids_BT, row_mask(ids_BT.to(self.device), lengths, unseen))

    @torch.no_grad()
    def encode_rows(
        self, rows: Sequence[Tensor], places: Sequence[Tensor], unseen: int | None = None
    ) -> Tensor:
        """Hidden states (M, D), as `encode` gives them, at places of rows (T,) that go through together."""
        parts = in_parts(list(zip(rows, places, strict=True)), lambda each: len(each[0]), self._together)
        return torch.cat([self._encode_rows(part, unseen) for part in parts])

    def _encode_rows(self, rows: Sequence[tuple[Tensor, Tensor]], unseen: int | None) -> Tensor:
        lengths = [len(ids_T) for ids_T, _ in rows]
        masks = [row_mask(ids_T[None], [len(ids_T)], unseen) for ids_T, _ in rows]

        def attend(index: int, heads_MHD: Tensor) -> Tensor:
            found = zip(torch.split(heads_MHD, lengths), masks, strict=True)
            return torch.cat(
                [self._attend_in_row(heads_THD, seen, causal=False) for heads_THD, seen in found]
            )

        starts = accumulate(lengths, initial=0)
        wanted_M = torch.cat([places + start for (_, places), start in zip(rows, starts, strict=False)])
        cis_M1R = torch.cat([self._cis[:length] for length in lengths])
        x_MD = self._embed(torch.cat([ids_T for ids_T, _ in rows]))
        return self._layers(x_MD, cis_M1R, attend, self.layers, wanted_M)

    @torch.no_grad()
    def extend(
        self, ids_BQ: Tensor, seen_B1QK: Tensor | None, start: int = 0, past: Past | None = None
    ) -> Tensor:
        """Hidden states (B, Q, D), as `encode` gives them, of the places from `start` on.

        Args:
            seen_B1QK: True where a query may look; keys are those in `past`, then those of `ids_BQ`; None is all.
            past: keys and values of this engine, to which those of `ids_BQ` are added; into an empty one goes a prompt.
        """
        rows, width = ids_BQ.shape
        first = past is not None and not past.get_seq_length()
        layers = self._prompt_layers if first else self.layers

        def attend(index: int, heads_MHD: Tensor) -> Tensor:
            heads_BHQD = heads_MHD.to(self.kept).view(rows, width, -1, self.head_dim).transpose(1, 2)
            q, k, v = torch.split(heads_BHQD, [self.heads, self.kv_heads, self.kv_heads], dim=1)
            if past is not None:
                k, v = past.update(k, v, index)
            grouped = self.heads != self.kv_heads
            seen = scaled_dot_product_attention(q, k, v, attn_mask=seen_B1QK, scale=1.0, enable_gqa=grouped)
            return seen.transpose(1, 2).reshape(rows * width, -1)

        place_Q = torch.arange(start, start + width, device=self.device)
        cis_M1R = self._cis[place_Q.clamp(max=self.window - 1)].repeat(rows, 1, 1)
        x_MD = self._embed(ids_BQ.reshape(-1).to(self.device))
        return self._layers(x_MD, cis_M1R, attend, layers).view(rows, width, -1)

    @torch.no_grad()
    def follow(self, ids_BQ: Tensor, past: Past, prefix: int = 0) -> Tensor:
        """Hidden states (B, Q, D) of ids behind those in `past`, to which they are added; each looks left.

        Where attention is one kernel they have the bits of a prompt of one row, of which the first `prefix` ids look at
        one another, and of steps behind it.
        """
        (rows, width), start = ids_BQ.shape, past.get_seq_length()
        prompt_TT = prefix_mask(width, prefix, self.device)

        def attend(index: int, heads_MHD: Tensor) -> Tensor:
            heads_BQHD = heads_MHD.to(self.kept).view(rows, width, -1, self.head_dim)
            keys_BKQD, values_BKQD = heads_BQHD[:, :, self.heads :].transpose(1, 2).chunk(2, 1)
            keys_BKTD, values_BKTD = past.update(keys_BKQD, values_BKQD, index)
            if not start:
                return self._attend_in_row(heads_MHD, prompt_TT)
            queries_QBHD = heads_BQHD[:, :, : self.heads].transpose(0, 1)
            found = attend_left(queries_QBHD, keys_BKTD, values_BKTD)
            return found.transpose(0, 1).reshape(rows * width, -1)

        layers = self.layers if start else self._prompt_layers
        cis_M1R = self._cis[start : start + width].repeat(rows, 1, 1)
        x_MD = self._embed(ids_BQ.reshape(-1).to(self.device))
        return self._layers(x_MD, cis_M1R, attend, layers).view(rows, width, -1)

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

    def _attend_in_row(self, heads_THD: Tensor, seen_TT: Tensor | None, causal: bool = True) -> Tensor:
        """Attended values (T, H * D); each id looks left, or everywhere, unless `seen_TT` says otherwise."""
        heads_HTD = heads_THD.to(self.kept).transpose(0, 1)
        q, k, v = torch.split(heads_HTD, [self.heads, self.kv_heads, self.kv_heads])
        grouped = self.heads != self.kv_heads
        seen = scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=seen_TT, is_causal=causal and seen_TT is None, scale=1.0,
            enable_gqa=grouped,
        )  # fmt: skip
        return seen[0].transpose(0, 1).reshape(len(heads_THD), -1)

    def _run(self, ids: Sequence[int], attend: Attend) -> Tensor:
        x_TD = self._embed(torch.tensor(ids, device=self.device))
        return self._layers(x_TD, self._cis[: len(ids)], attend, self.layers)

    def _embed(self, ids_M: Tensor) -> Tensor:
        rows_MD: Tensor = self.embed_VD.index_select(0, ids_M)
        return rows_MD.float()

    def _layers(
        self, x_MD: Tensor, cis_M1R: Tensor, attend: Attend, layers: Sequence[Layer], wanted: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """Hidden states of all rows, or of those wanted alone, which alone go through the end of the last layer."""
        xs, turns = _parts(x_MD), _parts(cis_M1R)
        for index, layer in enumerate(layers):
            heads = [self._project(layer, *each) for each in zip(xs, turns, strict=True)]
            attended_MD = attend(index, _whole(heads))
            if wanted is not None and layer is layers[-1]:
                xs, attended_MD = (
                    _parts(_whole(xs).index_select(0, wanted)),
                    attended_MD.index_select(0, wanted),
                )
            xs = [self._finish(layer, *each) for each in zip(xs, _parts(attended_MD), strict=True)]
        return _whole(xs)

    def _project(self, layer: Layer, x_MD: Tensor, cis_M1R: Tensor) -> Tensor:
        """Queries, keys and values (M, H, head_dim) in the format in which they are kept, turned by their positions."""
        rotated, all_heads = self.heads + self.kv_heads, self.heads + 2 * self.kv_heads
        heads_MHD = layer.qkv(self._norm(x_MD, self._mean)).view(-1, all_heads, self.head_dim)
        heads_MHD = heads_MHD if self.kept == torch.bfloat16 else heads_MHD.float()
        given_MHD = heads_MHD[:, :rotated]
        turned = given_MHD.float()
        if layer.head_scale_1HD is not None:
            turned = self._norm(turned, 1 / self.head_dim) * layer.head_scale_1HD
        torch.view_as_complex(turned.view(-1, rotated, self.head_dim // 2, 2)).mul_(cis_M1R)
        if turned is not given_MHD:
            given_MHD.copy_(turned)
        return heads_MHD

    def _finish(self, layer: Layer, x_MD: Tensor, attended_MD: Tensor) -> Tensor:
        """Hidden states behind a layer, in the place of those before it."""
        x_MD.add_(layer.out(attended_MD))
        return x_MD.add_(layer.down(layer.gated(self._norm(x_MD, self._mean))))

    def _logits(self, x_MD: Tensor) -> Tensor:
        return self.head(self._norm(x_MD, self._mean)).float()

    def _norm(self, x: Tensor, mean: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._eps, norm, norm, value=mean).rsqrt_()


def _parts(x: Tensor) -> Sequence[Tensor]:
    """As few parts of as many rows as go through a layer at once, about as long as one another."""
    return [x] if len(x) <= ROWS else x.tensor_split(-(-len(x) // ROWS))


def _whole(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
