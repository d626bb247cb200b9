"""One formula says who looks where, and it has the known masks as its cases."""

from __future__ import annotations

import pytest
import torch
from packed import packed_mask
from torch import Tensor

from cm3kit.models.attention import annealed, block_mask, flex_mask, mask_mod, row_mask
from cm3kit.models.backbone import BackboneConfig, build_backbone, forward

V = 30


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def halves(length: int, size: int, documents: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """[x_t ; x_0] of documents of one length, blocks of `size`."""
    place = torch.arange(length).repeat(2)
    noisy = torch.arange(2 * length) < length
    document = torch.arange(1, documents + 1).repeat_interleave(2 * length)
    return document[None], (place // size).repeat(documents)[None], noisy.repeat(documents)[None]


def tiny() -> torch.nn.Module:
    shape = dict(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48, max_positions=64)
    return build_backbone(BackboneConfig(**shape, std=0.3), V)  # type: ignore[arg-type]


def packed(seed: int, rows: int = 3, length: int = 40) -> Tensor:
    """Documents of random lengths one after another, from 1, and padding."""
    draw, ids = rng(seed), torch.zeros(rows, length, dtype=torch.long)
    for row in range(rows):
        place, name = 0, 0
        while place < length - 6:
            size = int(torch.randint(1, 12, (), generator=draw))
            name += 1
            ids[row, place : min(place + size, length - 3)] = name
            place += size
    return ids


def test_pairs_of_block_diffusion() -> None:
    mask = block_mask(*halves(8, 4))[0, 0]
    assert mask[:8, :8].sum() == 32  # noisy to its own noisy block: L b
    assert mask[:8, 8:].sum() == 16  # noisy to earlier clean blocks: b² K (K - 1) / 2
    assert mask[8:, 8:].sum() == 48  # clean to clean: b² K (K + 1) / 2
    assert mask[8:, :8].sum() == 0


@pytest.mark.parametrize(("length", "size"), [(12, 3), (12, 4), (20, 5), (6, 1), (6, 6)])
def test_pairs_follow_the_closed_form(length: int, size: int) -> None:
    mask, count = block_mask(*halves(length, size))[0, 0], length // size
    parts = mask[:length, :length], mask[:length, length:], mask[length:, length:], mask[length:, :length]
    expected = length * size, size**2 * count * (count - 1) // 2, size**2 * count * (count + 1) // 2, 0
    assert tuple(int(part.sum()) for part in parts) == expected


def test_blocks_of_one_and_of_all() -> None:
    one, all_ = block_mask(*halves(6, 1))[0, 0], block_mask(*halves(6, 6))[0, 0]
    assert torch.equal(one[6:, 6:], torch.ones(6, 6).tril().bool())
    assert torch.equal(one[:6, 6:], torch.ones(6, 6).tril(-1).bool())
    assert torch.equal(one[:6, :6], torch.eye(6).bool())
    assert all_[:6, :6].all() and not all_[:6, 6:].any()


def test_the_order_of_the_halves_does_not_matter() -> None:
    document, block, noisy = halves(8, 4)
    swap = torch.arange(16).roll(8)
    swapped = block_mask(document[:, swap], block[:, swap], noisy[:, swap])
    assert torch.equal(swapped, block_mask(document, block, noisy)[:, :, swap][:, :, :, swap])


def test_the_formula_by_brute_force() -> None:
    draw = rng(5)
    document, block, noisy = (torch.randint(0, n, (2, 24), generator=draw) for n in (3, 4, 2))
    mask = block_mask(document, block, noisy)
    for row in range(2):
        for q in range(24):
            for k in range(24):
                (dq, bq, nq), (dk, bk, nk) = (
                    [int(x[row, i]) for x in (document, block, noisy)] for i in (q, k)
                )
                sees = (nq and nk and bq == bk) or (not nk and bk < bq) or (not nq and not nk and bk <= bq)
                assert bool(mask[row, 0, q, k]) == (q == k or bool(dq == dk and dq > 0 and sees))


@pytest.mark.parametrize("seed", range(4))
def test_clean_blocks_of_one_are_the_causal_mask_of_packed_rows(seed: int) -> None:
    document = packed(seed)
    place = torch.arange(document.shape[1]).expand_as(document)
    mask, causal = block_mask(document, place, torch.zeros_like(document)), packed_mask(document)
    real = (document > 0)[:, None, :, None].expand_as(mask)
    assert torch.equal(mask[real], causal[real])
    assert torch.equal(mask[~real], torch.eye(40).bool().expand_as(mask)[~real])


@pytest.mark.parametrize("seed", range(2))
def test_noisy_documents_of_one_block_see_all_of_themselves(seed: int) -> None:
    document = packed(seed)
    mask = block_mask(document, torch.zeros_like(document), torch.ones_like(document))
    same = (document[:, :, None] == document[:, None]) & (document > 0)[:, :, None]
    assert torch.equal(mask[:, 0], same | torch.eye(40).bool())


def test_some_queries_are_rows_of_the_whole() -> None:
    ids = halves(8, 4, documents=2)
    assert torch.equal(block_mask(*ids, slice(5, 11)), block_mask(*ids)[:, :, 5:11])


def test_a_clean_block_reaches_later_noisy_blocks_only() -> None:
    model, (document, block, noisy) = tiny(), halves(12, 4)
    ids, places = torch.randint(0, V, (1, 24), generator=rng()), torch.arange(12).repeat(2)[None]
    mask = block_mask(document, block, noisy)
    with torch.no_grad():
        before = forward(model, ids, mask, places)
        for changed in range(3):
            other = ids.clone()
            other[0, 12 + 4 * changed : 16 + 4 * changed] = (other[0, 12 + 4 * changed] + 1) % V
            moved = (forward(model, other, mask, places) - before).abs().amax(-1)[0].view(6, 4).amax(-1)
            reached = [later > changed for later in range(3)] + [later >= changed for later in range(3)]
            assert (moved > 1e-3).tolist() == reached
            assert moved[~torch.tensor(reached)].eq(0).all()


def test_the_first_id_sees_the_last_one_under_full_attention_only() -> None:
    model, ids = tiny(), torch.randint(0, V, (1, 10), generator=rng())
    one, place, last = torch.ones(1, 10, dtype=torch.long), torch.arange(10)[None], ids.clone()
    last[0, -1] = (last[0, -1] + 1) % V
    causal, full = block_mask(one, place, one * 0), block_mask(one, one, one)
    with torch.no_grad():
        assert torch.equal(forward(model, ids, causal)[0, 0], forward(model, last, causal)[0, 0])
        assert (forward(model, ids, full)[0, 0] - forward(model, last, full)[0, 0]).abs().max() > 1e-3
        assert torch.allclose(forward(model, ids, full), forward(model, ids, "full"), atol=1e-5)
        assert torch.allclose(forward(model, ids, causal), forward(model, ids, "causal"), atol=1e-5)


def test_padding_leaves_every_logit_finite() -> None:
    model, ids = tiny(), torch.randint(0, V, (1, 8), generator=rng())
    document = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    mask = block_mask(document, document * 0, document > 0)
    with torch.no_grad():
        padded, alone = forward(model, ids, mask), forward(model, ids[:, :5], "full")
    assert padded.isfinite().all()
    assert torch.allclose(padded[:, :5], alone, atol=1e-5)


def test_flex_attention_gets_the_same_mask() -> None:
    from torch.nn.attention.flex_attention import create_mask

    draw = rng(3)
    ids = [torch.randint(0, n, (2, 24), generator=draw) for n in (3, 4, 2)]
    made = create_mask(mask_mod(*ids), 2, None, 24, 24, device="cpu")
    assert torch.equal(made, block_mask(*ids))


def test_flex_attention_skips_the_tiles_that_nobody_sees() -> None:
    # Two documents of two tiles each: each sees its own two by two tiles and none of its neighbour's.
    document = torch.tensor([1, 2]).repeat_interleave(256)[None]
    tiles = flex_mask(document, document * 0, document > 0).to_dense()[0, 0].bool()
    assert torch.equal(tiles, torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool())


def annealing(share: float, seed: int = 0) -> Tensor:
    """Documents: 12 noisy ids in one block, 6 clean causal ids, [x_t ; x_0] of 2 × 4 ids, 2 of padding."""
    document = torch.tensor([1] * 12 + [2] * 6 + [3] * 8 + [0] * 2)[None]
    block = torch.tensor([0] * 12 + [0, 1, 2, 3, 4, 5] + [0, 0, 1, 1] * 2 + [0] * 2)[None]
    noisy = torch.tensor([1] * 12 + [0] * 6 + [1] * 4 + [0] * 4 + [1] * 2)[None]
    mask = annealed(document, block, noisy, share, rng(seed))
    plain = block_mask(document, block, noisy)
    assert torch.equal(mask[:, :, 12:], plain[:, :, 12:])
    assert torch.equal(mask[:, :, :12, 12:], plain[:, :, :12, 12:])
    return mask[0, 0, :12, :12]


def test_annealing_ends_are_causal_and_full() -> None:
    assert torch.equal(annealing(0.0), torch.ones(12, 12).tril().bool())
    assert annealing(1.0).all()


def test_annealing_opens_the_stated_share() -> None:
    drawn = torch.stack([annealing(0.3, seed) for seed in range(200)])
    assert drawn[:, torch.ones(12, 12).tril().bool()].all()
    right = drawn[:, torch.ones(12, 12).triu(1).bool()].float()
    # 200 × 66 independent draws: four standard deviations of a share are 4 sqrt(.21 / 13200) = .016.
    assert abs(float(right.mean()) - 0.3) < 0.016
    assert not torch.equal(drawn[0], drawn[1])


def test_annealing_repeats_with_the_generator_and_leaves_the_global_one() -> None:
    state = torch.get_rng_state()
    assert torch.equal(annealing(0.5, 7), annealing(0.5, 7))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_in_the_unit_interval(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        annealing(share)


def test_unseen_places_see_and_are_seen_by_nobody_else() -> None:
    documents, draw = packed(3), rng(3)
    blocks, noisy = torch.zeros_like(documents), torch.ones_like(documents, dtype=torch.bool)
    unseen = torch.rand(documents.shape, generator=draw) < 0.4
    mask, plain = (block_mask(documents, blocks, noisy, unseen_BT=each)[:, 0] for each in (unseen, None))
    for row, query, key in torch.cartesian_prod(*map(torch.arange, mask.shape)).tolist():
        expected = bool(plain[row, query, key]) and (query == key or not unseen[row, key])
        assert bool(mask[row, query, key]) == expected
    # A row on its own, as decoders lay it out.
    ids, lengths = torch.where(unseen, 3, 9), [40, 17, 0]
    mask = row_mask(ids, lengths, 3)
    assert mask is not None and mask.any(-1).all()
    for row, length in enumerate(lengths[:2]):
        inside = torch.ones(1, length, dtype=torch.long)
        kept = unseen[row : row + 1, :length]
        alone = block_mask(inside, inside, inside.bool(), unseen_BT=kept)[0, 0]
        assert torch.equal(mask[row, 0, :length, :length], alone)
        assert not (mask[row, 0, :length, length:]).any()
    assert row_mask(ids, [40, 40, 40]) is None
