"""Attention of one id per slot over a static cache, which takes as long as reading keys and values does.

On a CPU that is SDPA's fused kernel where it gives a slot the same bits whatever is beside it (`is_fused`). Elsewhere a
batched product with a vector is about twice as fast where the vector stands on the right and what it is summed with
lies side by side; so there a cache keeps the values of a coordinate side by side (`Cache.across`).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from cm3kit.decoders.cache import BUCKET, Write
from cm3kit.rng import generator

TRIED, FAR = 4, 1024  # heads that attention is tried on, and the longest span


class StepAttention:
    """Attended values (S, heads * head_dim) of one id per slot; heads that share a key are so many queries of one head.

    Where values lie across, or the kernel is fused, a slot gets the same bits whatever other slots there are, and
    however far they reach.

    Args:
        heads: of queries.
        kv_heads: of keys.
    """

    def __init__(self, heads: int, kv_heads: int, head_dim: int) -> None:
        self._group, self._head_dim = heads // kv_heads, head_dim
        self._most: int | None = None

    def __call__(self, write: Write, queries_SHD: Tensor, keys_NCD: Tensor, values: Tensor) -> Tensor:
        """Attend over what `Cache.write` gave."""
        queries_NGD = queries_SHD.reshape(-1, self._group, self._head_dim)
        if write.fused:
            slots = len(queries_SHD)
            queries_SKGD = queries_NGD.view(slots, -1, *queries_NGD.shape[1:])
            return _fused(queries_SKGD, keys_NCD, values, write.mask_N1C[:, None]).reshape(slots, -1)
        if write.across is None:
            # Two batched products take half the time of the fused kernel, which is made for long queries.
            weights_NGC = torch.baddbmm(write.mask_N1C, queries_NGD, keys_NCD.transpose(1, 2)).softmax(-1)
            return torch.bmm(weights_NGC, values).view(len(queries_SHD), -1)
        if self._most is None:
            self._most = most_queries(self._group, self._head_dim)
        return _attend(queries_NGD, keys_NCD, values, write.mask_N1C, self._most).view(len(queries_SHD), -1)


def _fused(queries_SKGD: Tensor, keys_SKCD: Tensor, values_SKCD: Tensor, mask_S11C: Tensor) -> Tensor:
    queries_SKGD = queries_SKGD.to(keys_SKCD.dtype)
    return scaled_dot_product_attention(queries_SKGD, keys_SKCD, values_SKCD, attn_mask=mask_S11C, scale=1.0)


def attend_left(queries_QSHD: Tensor, keys_SKCD: Tensor, values_SKCD: Tensor) -> Tensor:
    """Attended values (Q, S, heads * head_dim) of the last Q positions of slots, each by itself as a step has it."""
    steps, slots, heads, head_dim = queries_QSHD.shape
    kv_heads, length = keys_SKCD.shape[1:3]
    room = (0, 0, 0, -length % BUCKET)
    keys_SKCD, values_SKCD = pad(keys_SKCD, room), pad(values_SKCD, room)
    queries_QSKGD = queries_QSHD.reshape(steps, slots, kv_heads, heads // kv_heads, head_dim)
    before, found, at = length - steps, [], 0
    while at < steps:
        # Positions up to the next multiple reach as far; of these, or else of slots, a call has many.
        span = (before + at) // BUCKET * BUCKET + BUCKET
        stop = min(steps, span - before)
        seen_PC = torch.arange(span) <= torch.arange(before + at, before + stop)[:, None]
        mask_PC = torch.zeros(seen_PC.shape, dtype=keys_SKCD.dtype).masked_fill_(~seen_PC, -torch.inf)
        q, k, v = queries_QSKGD[at:stop], keys_SKCD[:, :, :span], values_SKCD[:, :, :span]
        if slots < stop - at:
            rows = [
                _fused(q[:, slot], *_alike(k[slot], v[slot], stop - at), mask_PC[:, None, None])
                for slot in range(slots)
            ]
            found.append(torch.stack(rows, 1))
        else:
            found += [_fused(each, k, v, mask_PC[step : step + 1])[None] for step, each in enumerate(q)]
        at = stop
    return torch.cat(found).reshape(steps, slots, -1)


def _alike(keys_KCD: Tensor, values_KCD: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return keys_KCD.expand(count, -1, -1, -1), values_KCD.expand(count, -1, -1, -1)


@lru_cache(maxsize=64)
def is_fused(group: int, head_dim: int, dtype: torch.dtype) -> bool:
    """Whether this machine's kernel gives a slot the same bits over every span and beside any others.

    No library promises it, so it is tried.
    """
    rng = generator(0)
    queries = torch.randn(TRIED, 2, group, head_dim, generator=rng)
    # As a cache has them, and as they come.
    kept = torch.randn(TRIED, FAR, 2, 2, head_dim, generator=rng).to(dtype)
    keys, values = (each.transpose(1, 2) for each in kept.unbind(2))
    plain = keys.contiguous(), values.contiguous()
    for length in (1, BUCKET - 3, 4 * BUCKET, 6 * BUCKET + 1, FAR // 2 + 5):
        found = []
        for span in (*range(-(-length // BUCKET) * BUCKET, FAR, 3 * BUCKET), FAR):
            mask = torch.zeros(TRIED, 1, 1, span, dtype=dtype)
            mask[..., length:] = -torch.inf
            for some in (slice(1), slice(TRIED)):
                for k, v in ((keys, values), plain):
                    found.append(_fused(queries[some], k[some, :, :span], v[some, :, :span], mask[some])[:1])
        if not all(torch.equal(each, found[0]) for each in found):
            return False
    return True


def _attend(queries_NGD: Tensor, keys_NCD: Tensor, values_NDC: Tensor, mask_N1C: Tensor, most: int) -> Tensor:
    """Attended values (N, G, D), of so many queries at once."""
    count, group, _ = queries_NGD.shape
    if group > most:
        parts = torch.split(queries_NGD, most, 1)
        return torch.cat([_attend(each, keys_NCD, values_NDC, mask_N1C, most) for each in parts], 1)
    if count == 1:  # a product alone is another kernel, which sums in another order
        two = [each.expand(2, -1, -1) for each in (queries_NGD, keys_NCD, values_NDC, mask_N1C)]
        return _attend(two[0], two[1], two[2], two[3], most)[:1]
    if group == 1:
        scores_N1C = (
            torch.bmm(keys_NCD, queries_NGD.reshape(count, -1, 1)).view(mask_N1C.shape).add_(mask_N1C)
        )
        weights_NC1 = scores_N1C.softmax(-1).view(count, -1, 1)
        return torch.bmm(values_NDC, weights_NC1).view(queries_NGD.shape)
    weights_NGC = torch.baddbmm(mask_N1C, queries_NGD, keys_NCD.transpose(1, 2)).softmax(-1)
    return torch.bmm(values_NDC, weights_NGC.transpose(1, 2)).transpose(1, 2).contiguous()


@lru_cache(maxsize=64)
def most_queries(group: int, head_dim: int) -> int:
    """How many queries of a head this machine attends for at once with the same bits over every span.

    No library promises it, and with many queries some sum spans of certain lengths in another order: so it is tried.
    """
    while group > 1 and not _steady(group, head_dim):
        group = (group + 1) // 2
    return group


def _steady(group: int, head_dim: int) -> bool:
    rng = generator(0)
    queries = torch.randn(TRIED, group, head_dim, generator=rng)
    keys = torch.randn(TRIED, FAR, head_dim, generator=rng)
    values = torch.randn(TRIED, head_dim, FAR, generator=rng)
    for length in (BUCKET - 3, 4 * BUCKET, 6 * BUCKET + 1):
        found = []
        for span in (*range(-(-length // BUCKET) * BUCKET, 12 * BUCKET, BUCKET), FAR):
            mask = torch.zeros(TRIED, 1, span)
            mask[..., length:] = -torch.inf
            found.append(_attend(queries, keys[:, :span], values[..., :span], mask, group))
        if not all(torch.equal(each, found[0]) for each in found):
            return False
    return True
