"""Attention of a step: that of the definition, and the same bits whatever other slots there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cm3kit.decoders.cache import BUCKET, Cache
from cm3kit.decoders.step_attention import StepAttention, is_fused, most_queries
from cm3kit.rng import generator

torch.set_num_threads(1)
CPU = torch.device("cpu")


KINDS: dict[str, dict[str, Any]] = {
    "across": {"across": True}, "fused": {"fused": True}, "fused, bf16": {"fused": True, "dtype": torch.bfloat16},
    "plain": {},
}  # fmt: skip


def attended(kv_heads: int, group: int, length: int, slots: int, span: int, kind: str = "across") -> Tensor:
    """Of slot 0, which has so many positions, beside others that reach to the span."""
    rng, width = generator(length), 32
    cache = Cache(1, slots, kv_heads, span, width, CPU, **KINDS[kind])
    prompt = torch.randn(2 * kv_heads, length - 1, width, generator=rng)
    heads = torch.randn(1, (group + 2) * kv_heads, width, generator=rng)
    other = torch.randn(slots - 1, (group + 2) * kv_heads, width, generator=generator(slots))
    cache.put(0, slots - 1, prompt)
    cache.copy(slots - 1, 0, length - 1)
    # A place that was used before holds numbers behind the row's end.
    for layer in cache.layers:
        cut = layer[1:] if cache.fused else layer.view(2, slots, kv_heads, -1)[:, 1:]
        cut.copy_(torch.randn(cut.shape, generator=rng))
    write = cache.at([length - 1, *[span - 1] * (slots - 1)], [True] * slots)
    heads_SHD = torch.cat([heads, other])
    queries_SHD, kv_SHD = heads_SHD.tensor_split([group * kv_heads], 1)
    seen = StepAttention(group * kv_heads, kv_heads, width)(
        write, queries_SHD, *cache.write(0, write, kv_SHD)
    ).float()
    keys, values = torch.cat([prompt, heads[0, group * kv_heads :, None]], 1).double().chunk(2)
    queries = heads[0, : group * kv_heads].double().view(kv_heads, group, width)
    wanted = (queries @ keys.transpose(1, 2)).softmax(-1) @ values
    assert torch.allclose(seen[0], wanted.float().flatten(), atol=0.1 if "bf16" in kind else 1e-5)
    return seen[0]


@pytest.mark.parametrize("kv_heads", [1, 3])
@pytest.mark.parametrize("group", [1, 2, 4, 7, 16])
@pytest.mark.parametrize("kind", ["across", "fused", "fused, bf16"])
def test_a_slot_has_the_same_bits_in_any_company(kv_heads: int, group: int, kind: str) -> None:
    if "fused" in kind and not is_fused(group, 32, KINDS[kind].get("dtype", torch.float32)):
        pytest.skip("this machine's kernel promises less, and is not used")
    for length in (1, 29, 128, 200):
        spans = [each for each in (32, 64, 128, 192, 224, 256, 320, 1024) if each >= length]
        alone = attended(kv_heads, group, length, 1, -(-length // BUCKET) * BUCKET, kind)
        for span in spans:
            for slots in (2, 5):
                assert torch.equal(attended(kv_heads, group, length, slots, span, kind), alone)


def test_values_as_they_come_give_the_same_up_to_rounding() -> None:
    for group in (1, 4):
        ours = [attended(2, group, 70, 3, 96, kind) for kind in KINDS if "bf16" not in kind]
        assert all(torch.allclose(each, ours[0], atol=1e-6) for each in ours)


def test_a_kernel_whose_bits_depend_on_others_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from cm3kit.decoders import step_attention

    own, beside = step_attention._fused, []

    def unsteady(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        beside.append(keys.shape[2])
        return own(queries, keys, values, mask) * (1 + 1e-6 * (keys.shape[2] > 900))

    is_fused.cache_clear()
    monkeypatch.setattr(step_attention, "_fused", unsteady)
    assert not is_fused(1, 32, torch.float32) and max(beside) > 900
    is_fused.cache_clear()


def test_as_many_queries_go_at_once_as_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from cm3kit.decoders import step_attention

    most_queries.cache_clear()
    monkeypatch.setattr(step_attention, "_steady", lambda group, head_dim: group <= 3)
    assert [most_queries(group, 8) for group in (1, 2, 3, 4, 7, 16)] == [1, 2, 3, 2, 2, 2]
    split = attended(2, 7, 70, 3, 96)
    most_queries.cache_clear()
    monkeypatch.undo()
    assert torch.allclose(split, attended(2, 7, 70, 3, 96), atol=1e-6)
