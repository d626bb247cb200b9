"""Attention of a step: that of the definition, and the same bits whatever other slots there are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cm3kit.decoders.cache import BUCKET, Cache
from cm3kit.decoders.step_attention import StepAttention, most_queries
from cm3kit.rng import generator

torch.set_num_threads(1)
CPU = torch.device("cpu")


def attended(kv_heads: int, group: int, length: int, slots: int, span: int, across: bool = True) -> Tensor:
    """Of slot 0, which has so many positions, beside others that reach to the span."""
    rng, width = generator(length), 32
    cache = Cache(1, slots, kv_heads, span, width, CPU, across=across)
    prompt = torch.randn(2 * kv_heads, length - 1, width, generator=rng)
    heads = torch.randn(1, (group + 2) * kv_heads, width, generator=rng)
    other = torch.randn(slots - 1, (group + 2) * kv_heads, width, generator=generator(slots))
    cache.put(0, slots - 1, prompt)
    cache.copy(slots - 1, 0, length - 1)
    # A place that was used before holds numbers behind the row's end.
    for layer in cache.layers:
        cut = layer.view(2, slots, kv_heads, -1)
        cut[:, 1:] = torch.randn(cut[:, 1:].shape, generator=rng)
    write = cache.at([length - 1, *[span - 1] * (slots - 1)], [True] * slots)
    heads_SHD = torch.cat([heads, other])
    queries_SHD, kv_SHD = heads_SHD.tensor_split([group * kv_heads], 1)
    seen = StepAttention(group * kv_heads, kv_heads, width)(
        write, queries_SHD, *cache.write(0, write, kv_SHD)
    )
    keys, values = torch.cat([prompt, heads[0, group * kv_heads :, None]], 1).double().chunk(2)
    queries = heads[0, : group * kv_heads].double().view(kv_heads, group, width)
    wanted = (queries @ keys.transpose(1, 2)).softmax(-1) @ values
    assert torch.allclose(seen[0], wanted.float().flatten(), atol=1e-5)
    return seen[0]


@pytest.mark.parametrize("kv_heads", [1, 3])
@pytest.mark.parametrize("group", [1, 2, 4, 7, 16])
def test_a_slot_has_the_same_bits_in_any_company(kv_heads: int, group: int) -> None:
    for length in (1, 29, 128, 200):
        spans = [each for each in (32, 64, 128, 192, 224, 256, 320, 1024) if each >= length]
        alone = attended(kv_heads, group, length, 1, -(-length // BUCKET) * BUCKET)
        for span in spans:
            for slots in (2, 5):
                assert torch.equal(attended(kv_heads, group, length, slots, span), alone)


def test_values_as_they_come_give_the_same_up_to_rounding() -> None:
    for group in (1, 4):
        ours, other = (attended(2, group, 70, 3, 96, across) for across in (True, False))
        assert torch.allclose(ours, other, atol=1e-6)


def test_as_many_queries_go_at_once_as_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from cm3kit.decoders import step_attention

    most_queries.cache_clear()
    monkeypatch.setattr(step_attention, "_steady", lambda group, head_dim: group <= 3)
    assert [most_queries(group, 8) for group in (1, 2, 3, 4, 7, 16)] == [1, 2, 3, 2, 2, 2]
    split = attended(2, 7, 70, 3, 96)
    most_queries.cache_clear()
    monkeypatch.undo()
    assert torch.allclose(split, attended(2, 7, 70, 3, 96), atol=1e-6)
