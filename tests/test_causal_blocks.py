"""Causal masking with blocks: the row of cm3, what a block may know, and the same scores in use as in training."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import torch
from canvases import at_most, flat_spans, lay_out
from torch import Tensor

from cm3kit.decoders.diffusion.blocks import blocks_of
from cm3kit.decoders.diffusion.cached import ExactCache
from cm3kit.decoders.diffusion.denoiser import Ask
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.fill.layouts import put_back
from cm3kit.models.attention import block_mask
from cm3kit.models.backbone import BackboneConfig, build_backbone, forward
from cm3kit.objectives import CausalBlocks, CausalMask, MaskedDiffusion
from cm3kit.objectives.gaps import GapLaw
from cm3kit.rng import generator
from cm3kit.training.collate import pack
from cm3kit.types import Example, Fill
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import ConfigError, PageError
from cm3kit_tokenizers.vocab import Vocab

VOCAB = Vocab(text_size=60, image_size=20, sentinels=8)
GRID = (2, 3)
MASK, EOSS, EOD = VOCAB.mask, VOCAB.eoss, VOCAB.eod
PIECE = VOCAB.markup_id
WORDS, CODES = list(VOCAB.text), list(VOCAB.image)
LAW = GapLaw(all=0.2, picture=0.7, words=0.6, exact=0.3)
SIZE = 4


def page(shift: int = 0) -> list[int]:
    return [
        PIECE("<p>"), *WORDS[shift : shift + 4], PIECE("</p>"),
        PIECE("<img"), PIECE(' alt="'), *WORDS[10:12], PIECE('"'), PIECE(' src="'), *CODES[shift : shift + 6],
        PIECE('"'), PIECE(">"), PIECE("<p>"), WORDS[20 + shift], PIECE("</p>"),
    ]  # fmt: skip


def blocks(size: int = SIZE, weight: float = 1.0, **how: Any) -> CausalBlocks:
    how = {"law": LAW, "grid": GRID, **how}
    return CausalBlocks(VOCAB, size, inner=MaskedDiffusion(VOCAB, **how), causal_weight=weight)


def halves(each: Example) -> tuple[int, list[int]]:
    """How many ids of the noised copy there are, and the clean row as the model sees it."""
    assert each.noisy is not None and each.inputs is not None
    size = sum(each.noisy)
    assert each.noisy == [True] * size + [False] * (len(each.ids) - size)
    return size, each.inputs[size:]


def net() -> Any:
    shape = BackboneConfig(hidden_size=32, layers=3, heads=2, kv_heads=1, intermediate_size=48, std=0.25)
    return build_backbone(shape, len(VOCAB))


def scores(model: Any, each: Example, size: int = 160) -> Tensor:
    packed = pack([each], 1, size)
    mask_B1TT = block_mask(packed.documents_BT, packed.blocks_BT, packed.noisy_BT)
    with torch.no_grad():
        found: Tensor = forward(model, packed.ids_BT, mask_B1TT, packed.places_BT)[0]
    return found


@pytest.mark.parametrize("seed", range(12))
def test_the_clean_copy_is_the_row_of_cm3(seed: int) -> None:
    (each,) = blocks().make_example(page(seed % 4), generator(seed), 300)
    size, clean = halves(each)
    row = [id for id, run in groupby(clean) for id in ([id] if id == EOSS else run)]
    assert CausalMask(VOCAB, grid=GRID).unmask(row) == page(seed % 4)
    assert [each.ids[place] for span in each.spans for place in range(span.start, span.stop)] == each.ids[
        :size
    ]
    # Slots stand where the row has them, whole gaps in order, and behind a sentinel.
    assert each.places is not None and each.inputs is not None and each.blocks is not None
    assert each.places[size:] == each.blocks[size:] == list(range(len(clean)))
    for span in each.spans:
        places = each.places[span.start : span.stop]
        assert places == list(range(places[0], places[0] + len(places)))
        assert clean[places[0] - 1] in VOCAB.sentinel_range
        assert each.blocks[span.start : span.stop] == [
            places[0] + index // SIZE * SIZE for index in range(len(places))
        ]
    assert all(each.ids[place] == clean[each.places[place]] for place in range(size))
    assert set(each.inputs[:size]) <= {MASK, *each.ids[:size]}


@pytest.mark.parametrize("seed", range(6))
def test_the_clean_copy_is_scored_as_the_causal_model_does(seed: int) -> None:
    (each,) = blocks().make_example(page(seed), generator(seed), 300)
    size, clean = halves(each)
    model = net()
    with torch.no_grad():
        expected_TV = forward(model, torch.tensor([clean]), "causal")[0]
    torch.testing.assert_close(scores(model, each)[size : len(each.ids)], expected_TV, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_nobody_who_is_asked_for_a_slot_can_know_what_comes_from_there_on(seed: int) -> None:
    (each,) = blocks(weighting="uniform").make_example(page(seed), generator(seed), 300)
    packed, size = pack([each], 1, len(each.ids)), sum(each.noisy or [])
    sees_TT = block_mask(packed.documents_BT, packed.blocks_BT, packed.noisy_BT)[0, 0].float()
    knows_TT = torch.linalg.matrix_power(sees_TT, 8) > 0  # through as many layers as one likes
    assert each.places is not None and each.inputs is not None
    asked = [at for at, weight in enumerate(each.weights) if weight > 0]
    assert any(at < size for at in asked) and any(at >= size for at in asked)
    for at in asked:
        place, known = each.places[at], knows_TT[at - 1].nonzero()[:, 0].tolist()
        clean = [each.places[other] for other in known if other >= size]
        shown = [each.places[other] for other in known if other < size and each.inputs[other] != MASK]
        assert place not in clean + shown and max(clean) < place
        # What is shown of the block itself may lie behind.
        assert all(abs(other - place) < SIZE for other in shown)


def test_every_slot_is_asked_for_once_by_a_pair_and_once_on_average() -> None:
    for seed in range(20):
        pair = blocks(complementary_masks=True, weighting="uniform", weight=0.0).make_example(
            page(), generator(seed), 300
        )
        size = sum(pair[0].noisy or [])
        slots = pair[0].places[:size] if pair[0].places else []
        asked = [
            each.places[at]
            for each in pair
            if each.places
            for at, weight in enumerate(each.weights)
            if weight
        ]
        assert sorted(asked) == slots
    total, count = 0.0, 0
    rng = generator(1)
    for _ in range(1500):
        (each,) = blocks(weight=0.0, law=GapLaw(all=1.0)).make_example(page(), rng, 300)
        total, count = total + sum(each.weights), count + sum(each.noisy or [])
    assert total / count == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("seed", range(8))
def test_use_scores_slots_as_training_does(seed: int) -> None:
    """A board that is written up to a block gives the scores that the block had beside the clean copy."""
    (each,) = blocks(cond_dropout=0.3).make_example(page(seed % 5), generator(seed), 300)
    size, clean = halves(each)
    model, places = net(), each.places or []
    trained_TV = scores(model, each)
    cache = ExactCache(model, MASK, len(VOCAB), SIZE, shift=True, causal=True, verify=True)
    for start in sorted(set((each.blocks or [])[:size])):
        at = [index for index in range(size) if (each.blocks or [])[index] == start]
        stop = places[at[-1]] + 1
        row = [*clean[:start], *((each.inputs or [])[index] for index in at), *[MASK] * (len(clean) - stop)]
        slots = torch.tensor([places[index] for index in at])
        cache.open_block(torch.tensor([row]), (len(row),), (start, stop))
        (found_MV,) = cache.logits(Ask(torch.tensor([row]), (len(row),), (slots,), (1.0,), (start, stop)))
        first_V = trained_TV[size + start - 1]
        expected_MV = torch.stack([first_V, *(trained_TV[index - 1] for index in at[1:])])
        torch.testing.assert_close(found_MV, expected_MV, atol=2e-5, rtol=1e-4)
    assert cache.verification is not None and cache.verification.flips == 0


def test_slices_keep_to_their_budget() -> None:
    long = page() * 6
    for seed in range(20):
        for each in blocks(complementary_masks=True).make_example(long, generator(seed), 120):
            assert len(each.ids) <= 120 and sum(each.weights) > 0
            assert len(pack([each], 1, 120).documents_BT.unique()) <= 2
    with pytest.raises(ConfigError):
        blocks().make_example(page(), generator(0), 16)


def test_masked_positions_lie_behind_the_page() -> None:
    ids = [
        PIECE("<p>"),
        WORDS[0],
        Gap(0, "content"),
        PIECE("</p>"),
        *CODES[:2],
        Gap(1, "image", 2),
        *CODES[4:6],
    ]
    limits = at_most(5, slots=True)
    laid = lay_out("behind", VOCAB, ids, limits, seed=9, guided=True)
    flat = laid.flatten(MASK)
    zero, one = VOCAB.sentinel(0), VOCAB.sentinel(1)
    shown = [PIECE("<p>"), WORDS[0], zero, PIECE("</p>"), *CODES[:2], one, *CODES[4:6]]
    assert flat.ids == (EOD, *shown, EOD, zero, *[MASK] * 5, one, MASK, MASK, EOSS)
    assert [(each.start, each.stop, each.padded, each.kind) for each in flat_spans(laid)] == [
        (12, 17, True, "content"), (18, 20, False, "image"),
    ]  # fmt: skip
    config = DiffusionConfig(block_size=SIZE, cache="causal")
    assert blocks_of(flat, config).windows == ((12, 16), (16, 17), (18, 20))
    assert lay_out("behind", VOCAB, ids, limits, reaches=(False, False)).flatten(MASK).ids == (
        *shown, zero, *[MASK] * 5, one, MASK, MASK, EOSS,
    )  # fmt: skip
    fills = [Fill((WORDS[3],), (-1.0,), True), Fill(tuple(CODES[7:9]), (-1.0,), True)]
    assert put_back(ids, laid, fills) == [
        PIECE("<p>"), WORDS[0], WORDS[3], PIECE("</p>"), *CODES[:2], *CODES[7:9], *CODES[4:6],
    ]  # fmt: skip
    assert laid.guides[0].flatten(MASK).ids.count(MASK) == 7 + 5
    with pytest.raises(PageError, match="no gap"):
        lay_out("behind", VOCAB, [PIECE("<p>")], limits)
    with pytest.raises(PageError, match="9 gaps, but the model has 8"):
        lay_out("behind", VOCAB, [Gap(0, "content")] * 9, limits)


@pytest.mark.parametrize(
    "make",
    [
        lambda: blocks(size=0),
        lambda: CausalBlocks(VOCAB, 4, low=0.5, high=0.5),
        lambda: blocks(hides="all"),
        lambda: blocks(ordered=0.5),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()
