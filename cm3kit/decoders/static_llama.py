"""`LeanEngine` for GPUs: steps of a few fixed shapes, which read nothing back and can be captured and compiled.

Keys and values are kept in the format of the products, and so is the table of embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from cm3kit.decode_options import CompileName
from cm3kit.decoders.cache import Cache, Write
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.decoders.prompts import Prompt, padded_mask
from cm3kit.decoders.replay import Replay
from cm3kit.decoders.settings import Precision
from cm3kit.decoders.transfer import upload
from cm3kit.models.plain import DecoderWeights

SHORTEST = 256
"""Attention runs over this many positions, or so many times a power of two; every size costs a capture."""

PROMPT, PASS = 64, 1024
"""Prompts are padded to this many ids, or so many times a power of two; a pass over some takes so many in all."""


def static_size(length: int, least: int = SHORTEST) -> int:
    """The smallest size that holds so many positions."""
    return least << max(0, -(-length // least) - 1).bit_length()


def prompt_size(length: int) -> int:
    """The same of prompts; those that need more than one pass are padded to whole ones."""
    return static_size(length, PROMPT) if length <= PASS else -(-length // PASS) * PASS


class StaticCache(Cache):
    """A cache of a few sizes, and the step over it."""

    step: Replay

    def at(self, positions: Sequence[int], active: Sequence[bool]) -> Write:
        """Plan a step; rows and masks are made of the positions in the step itself."""
        longest = max((p for p, on in zip(positions, active, strict=True) if on), default=0)
        positions_S = upload(positions, self._range.device)
        return Write(positions_S, positions_S, positions_S, span=min(self.capacity, static_size(longest + 1)))

    def place(self, positions_S: Tensor, span: int) -> tuple[Tensor, Tensor]:
        """Rows of a layer to write to, as in `Write`, and where slots look, (S, 1, 1, span)."""
        rows = (self._offsets + positions_S[:, None]).flatten()
        return rows, (self._range[:span] <= positions_S[:, None])[:, None, None]

    def rows_of(self, slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Rows of a layer for keys and values of these positions of slots."""
        device = self._range.device
        offsets = self._offsets.index_select(0, upload(slots, device))
        return (offsets + upload(positions, device)[:, None]).flatten()


class StaticEngine(LeanEngine):
    """See `LeanEngine`; it gives the same up to rounding.

    Args:
        compile: see `Replay`.
    """

    def __init__(
        self,
        model: DecoderWeights,
        vocab_size: int,
        precision: Precision,
        rows: int,
        compile: CompileName = "auto",
    ) -> None:
        super().__init__(model, vocab_size, precision, rows)
        self.ahead = True
        self._compile = compile
        self.kept = torch.bfloat16 if precision == "bf16" else torch.float32
        self._epsilon = float(model.config.rms_norm_eps)
        self._turns_T1R2 = torch.view_as_real(self._cis)

    def open(self, slots: int, capacity: int) -> Cache:
        """A cache for so many rows of so many positions."""
        room = min(static_size(capacity), max(capacity, self.window + 1))
        cache = StaticCache(
            len(self.layers), slots, self.kv_heads, room, self.head_dim, self.device, self.kept
        )
        cache.step = Replay(self.device, self._compile)
        return cache

    def prefill(self, cache: Cache, slot: int, ids: Sequence[int], prefix: int = 0) -> Tensor:
        """Put a prompt into a slot; logits (V,) after its last id. The first `prefix` ids look at one another."""
        return self.prefill_all(cache, [Prompt(slot, ids, prefix)])[0]

    def prefill_all(self, cache: Cache, prompts: Sequence[Prompt]) -> Tensor:
        """Put prompts into their slots; logits (N, V) after the last id of each, as `prefill` gives them.

        The shapes of a pass follow from the size of its prompts, so each is the same whichever are beside it.
        """
        alike: dict[tuple[int, bool], list[int]] = {}
        for at, each in enumerate(prompts):
            alike.setdefault((prompt_size(len(each.ids)), each.prefix > 1), []).append(at)
        found: dict[int, Tensor] = {}
        for (size, _), where in alike.items():
            rows = max(1, PASS // size)
            for start in range(0, len(where), rows):
                some = where[start : start + rows]
                logits_KV = self._prefill_padded(cache, [prompts[at] for at in some], size, rows)
                found |= zip(some, logits_KV, strict=False)
        return torch.stack([found[at] for at in range(len(prompts))])

    @torch.no_grad()
    def _prefill_padded(self, cache: Cache, prompts: Sequence[Prompt], size: int, rows: int) -> Tensor:
        """Logits (rows, V) after prompts of one size, and after nothing in rows that are left over."""
        assert isinstance(cache, StaticCache)
        lengths = [len(each.ids) for each in prompts]
        kept = [row * size + at for row, length in enumerate(lengths) for at in range(length)]
        slots = [each.slot for each, length in zip(prompts, lengths, strict=True) for _ in range(length)]
        to = cache.rows_of(slots, [at for length in lengths for at in range(length)])
        prefixes = [each.prefix for each in prompts] + [0] * (rows - len(prompts))
        kept_N, seen_K1TT = upload(kept, self.device), padded_mask(prefixes, size, self.device)

        def attend(index: int, heads_MHD: Tensor) -> Tensor:
            store = cache.layers[index]
            kv_NHD = heads_MHD[:, self.heads :].index_select(0, kept_N).to(store.dtype)
            store.view(-1, self.head_dim).index_copy_(0, to, kv_NHD.reshape(-1, self.head_dim))
            heads_KHTD = heads_MHD.to(store.dtype).view(rows, size, -1, self.head_dim).transpose(1, 2)
            q, k, v = torch.split(heads_KHTD, [self.heads, self.kv_heads, self.kv_heads], dim=1)
            found = scaled_dot_product_attention(
                q, k, v, attn_mask=seen_K1TT, is_causal=seen_K1TT is None, scale=1.0,
                enable_gqa=self.heads != self.kv_heads,
            )  # fmt: skip
            return found.transpose(1, 2).reshape(rows * size, -1).float()

        ids = [[*each.ids, *[0] * (size - len(each.ids))] for each in prompts]
        ids += [[0] * size] * (rows - len(prompts))
        place_T = torch.arange(size, device=self.device).clamp(max=self.window - 1)
        x_MD = self._embed(upload(ids, self.device).flatten())
        last = [row * size + length - 1 for row, length in enumerate(lengths)] + [0] * (rows - len(prompts))
        cis_M1R, last_K = self._cis[place_T].repeat(rows, 1, 1), upload(last, self.device)
        return self._logits(self._layers(x_MD, cis_M1R, attend, self._prompt_layers, last_K))

    def step(self, cache: Cache, write: Write, ids_S: Tensor) -> Tensor:
        """Put one id into every slot; logits (S, V) after it, which the next step may overwrite."""
        assert isinstance(cache, StaticCache)
        logits_SV: Tensor = cache.step(partial(self._forward, cache), write.span, write.positions_S, ids_S)
        return logits_SV

    @torch.no_grad()
    def _forward(self, cache: StaticCache, span: int, positions_S: Tensor, ids_S: Tensor) -> Tensor:
        slots, rotated = len(ids_S), self.heads + self.kv_heads
        rows, seen_S11C = cache.place(positions_S, span)
        turn_S1R2 = self._turns_T1R2.index_select(0, positions_S.clamp(max=self.window - 1))
        x_SD = self._embed(ids_S)
        for layer, store in zip(self.layers, cache.layers, strict=True):
            heads_SHD = layer.qkv(self._norm(x_SD)).float().view(slots, -1, self.head_dim)
            turned_SHD, values_SHD = heads_SHD[:, :rotated], heads_SHD[:, rotated:]
            if layer.head_scale_1HD is not None:
                turned_SHD = self._norm(turned_SHD) * layer.head_scale_1HD
            turned_SHD = _rotate(turned_SHD, turn_S1R2)
            kv_SHD = torch.cat([turned_SHD[:, self.heads :], values_SHD], dim=1).to(store.dtype)
            store.view(-1, self.head_dim).index_copy_(0, rows, kv_SHD.reshape(-1, self.head_dim))
            kept = store.view(2, slots, self.kv_heads, cache.capacity, self.head_dim)[:, :, :, :span]
            # Heads that share a key are so many queries of one head.
            queries = (
                turned_SHD[:, : self.heads].to(store.dtype).view(slots, self.kv_heads, -1, self.head_dim)
            )
            found = scaled_dot_product_attention(queries, kept[0], kept[1], attn_mask=seen_S11C, scale=1.0)
            x_SD = x_SD + layer.out(found.reshape(slots, -1).float())
            x_SD = x_SD + layer.down(layer.gated(self._norm(x_SD)))
        return self._logits(x_SD)

    def _norm(self, x: Tensor, mean: float | None = None) -> Tensor:
        return rms_norm(x, x.shape[-1:], eps=self._epsilon)


def _rotate(x_SHD: Tensor, turn_S1R2: Tensor) -> Tensor:
    """Each pair of adjacent coordinates times cos and sin: the product of `LeanEngine` in real numbers."""
    even_SHR, odd_SHR = x_SHD.view(*x_SHD.shape[:-1], -1, 2).unbind(-1)
    cos_S1R, sin_S1R = turn_S1R2.unbind(-1)
    pairs = even_SHR * cos_S1R - odd_SHR * sin_S1R, even_SHR * sin_S1R + odd_SHR * cos_S1R
    return torch.stack(pairs, dim=-1).flatten(-2)
