"""Re-masking and editing: marginals by exact recursion, counts by chance, diffusers' editing, and given ids."""

from __future__ import annotations

import itertools
import math

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from cm3kit.decoders.diffusion.modifiers import (
    Block,
    Cap,
    Conf,
    Edit,
    Editor,
    Loop,
    Remasker,
    Rescale,
    make,
)
from cm3kit_tokenizers.errors import ConfigError

UNIFORM = (Cap, Rescale, Loop)
etas = st.floats(0, 1)


def generator(seed: int) -> Generator:
    rng = Generator()
    rng.manual_seed(seed)
    return rng


def block(written: list[bool], step: int = 2, steps: int = 8, confidence: list[float] | None = None) -> Block:
    """A block at the odd places from 11 on."""
    count = len(written)
    sure = confidence or [0.5] * count
    return Block(
        11 + 2 * torch.arange(count),
        torch.where(torch.tensor(written), 7, 3),
        torch.tensor(written),
        torch.tensor(sure, dtype=torch.float64),
        step,
        steps,
    )


@pytest.mark.parametrize("kind", UNIFORM)
@settings(max_examples=40, deadline=None)
@given(eta=etas, steps=st.integers(1, 40))
def test_the_share_that_is_written_is_the_schedules_whatever_sigma(
    kind: type[Cap | Rescale | Loop], eta: float, steps: int
) -> None:
    remasker, share = kind(eta=eta), 0.0
    for step in range(steps):
        now = block([True], step, steps)
        sigma, unmask = remasker.sigma(now), remasker.unmask(now)
        assert 0 <= sigma <= 1
        assert -1e-12 <= unmask <= 1
        share = share * (1 - sigma) + (1 - share) * unmask
        assert math.isclose(share, remasker.alpha(now.next_time), abs_tol=1e-9)
    assert sigma == 0 and unmask == 1
    assert math.isclose(share, 1)


@settings(max_examples=40, deadline=None)
@given(eta=etas, now=st.floats(0, 0.999), more=st.floats(0, 1))
def test_the_share_is_the_plans_where_there_is_one(eta: float, now: float, more: float) -> None:
    then = now + more * (1 - now)
    planned = block([True, False])
    planned = Block(
        planned.slots_N, planned.ids_N, planned.written_N, planned.confidence_N, 3, 9, alphas=(now, then)
    )
    for remasker in (Cap(eta=eta), Rescale(eta=eta)):
        sigma = remasker.sigma(planned)
        share = now * (1 - sigma) + (1 - now) * remasker.unmask(planned)
        assert math.isclose(share, then, abs_tol=1e-9)
        assert remasker.unmask(planned) >= -1e-9


@pytest.mark.parametrize("kind", [*UNIFORM, Conf])
def test_without_remasking_it_is_the_ancestral_step(kind: type[Cap | Rescale | Loop | Conf]) -> None:
    for step in range(8):
        now = block([True] * 20 + [False], step, 8)
        remasker = kind(eta=0.0)
        assert len(remasker.reopen(now, generator(0))) == 0
        if kind is not Loop:
            assert math.isclose(remasker.unmask(now), 1 - now.next_time / now.time)


def test_sigmas() -> None:
    # At step 2 of 8: α_t = 1/4, α_s = 3/8, σ_max = 1. At step 6: 3/4, 7/8, 1/6.
    early, late = block([True], 2), block([True], 6)
    assert [Cap().sigma(early), Cap(eta=0.5).sigma(late)] == pytest.approx([0.008, 1 / 6])
    assert [Rescale().sigma(early), Rescale().sigma(late)] == pytest.approx([0.015, 0.0025])
    assert Cap(eta=0.5).unmask(late) == pytest.approx((7 / 8 - 5 / 6 * 3 / 4) / (1 / 4))


def test_conf_opens_the_least_sure_likeliest() -> None:
    late = block([True, False, True, True], 6, confidence=[0.9, 0.0, 0.5, 0.9])
    weights = [math.exp(-0.9), 0.0, math.exp(-0.5), math.exp(-0.9)]
    expected = [weight / sum(weights) / 6 for weight in weights]
    rng, draws, seen = generator(4), 3000, [0] * 4
    for _ in range(draws):
        for slot in Conf().reopen(late, rng).tolist():
            seen[(slot - 11) // 2] += 1
    for count, p in zip(seen, expected, strict=True):
        assert abs(count - draws * p) <= 4 * math.sqrt(draws * p * (1 - p))
    assert Conf().unmask(late) == pytest.approx(1 / 2)
    assert len(Conf().reopen(block([False] * 5), generator(0))) == 0


def test_slots_open_independently_and_only_written_ones() -> None:
    written = [k % 3 != 0 for k in range(600)]
    now, remasker = block(written, 1, 8), Cap(eta=0.25)
    rng, opened = generator(1), torch.zeros(20, 600)
    for trial in range(20):
        slots = remasker.reopen(now, rng)
        assert slots.tolist() == sorted(set(slots.tolist()))
        opened[trial, (slots - 11) // 2] = 1
    allowed_N = torch.tensor(written)
    assert not bool(opened[:, ~allowed_N].any())
    count = int(opened.sum())
    assert abs(count - 20 * 400 / 4) <= 4 * math.sqrt(20 * 400 * 3 / 16)


def test_the_dice_are_the_rows_own_and_do_not_hang_on_what_is_written() -> None:
    before = torch.get_rng_state()
    whole = Cap(eta=0.5).reopen(block([True] * 50), generator(9)).tolist()
    some = Cap(eta=0.5).reopen(block([True] * 25 + [False] * 25), generator(9)).tolist()
    assert torch.equal(torch.get_rng_state(), before)
    assert some == [slot for slot in whole if slot < 11 + 50]


@pytest.mark.parametrize("remasker", [Cap(eta=0.3), Rescale(eta=0.3), Loop(eta=0.1)])
def test_a_run_of_the_reverse_process_keeps_to_the_schedule_and_ends_full(
    remasker: Cap | Rescale | Loop,
) -> None:
    count, steps, rng = 4000, 10, generator(2)
    now = block([False] * count, 0, steps)
    for step in range(steps):
        now = Block(now.slots_N, now.ids_N, now.written_N, now.confidence_N, step, steps)
        opened = (remasker.reopen(now, rng) - 11) // 2
        chance = remasker.unmask(now)
        fresh_N = torch.rand(count, generator=rng, dtype=torch.float64) < chance
        written_N = now.written_N | fresh_N
        written_N[opened] = False
        now = Block(now.slots_N, now.ids_N, written_N, now.confidence_N, step + 1, steps)
        alpha = remasker.alpha(now.time)
        tolerance = 4.5 * math.sqrt(count * alpha * (1 - alpha))
        assert abs(int(written_N.sum()) - count * alpha) <= tolerance + 1e-6
    assert bool(now.written_N.all())


def test_the_loops_schedule() -> None:
    loop = Loop()
    times = [1.0, 0.775, 0.55, 0.3, 0.05, 0.025, 0.0]
    assert [loop.alpha(time) for time in times] == pytest.approx([0, 0.45, 0.9, 0.9, 0.9, 0.95, 1])
    steps = 100
    sigmas = [loop.sigma(block([True], step, steps)) for step in range(steps)]
    inside = [0.05 < 1 - step / steps <= 0.55 for step in range(steps)]
    assert sigmas == pytest.approx([0.02 if each else 0.0 for each in inside])
    plan = loop.plan(200, steps)
    assert sum(plan) == 200 and min(plan) == 0
    assert sum(plan[:45]) == sum(plan[:95]) == 180
    assert [loop.alpha(1.0), Loop(t_on=1.0, t_off=0.0).alpha(1.0), Loop(t_off=0.0).alpha(0.0)] == [0, 0, 1]


@pytest.mark.parametrize("kind", [Cap, Rescale, Conf, Loop])
def test_plans_sum_to_the_slots(kind: type[Cap | Rescale | Conf | Loop]) -> None:
    for blanks, steps in itertools.product((0, 1, 7, 64), (1, 3, 8, 100)):
        plan = kind().plan(blanks, steps)
        assert len(plan) == steps and sum(plan) == blanks and min(plan) >= 0
    assert Cap().plan(10, 4) == [2, 3, 2, 3]


def test_an_edit_replaces_written_ids_that_the_model_is_sure_are_others() -> None:
    now = block([True, True, True, False, True])
    p_MV = torch.full((5, 9), 1e-3)
    for row, (id, p) in enumerate([(5, 0.95), (7, 0.99), (5, 0.85), (5, 0.99), (8, 0.91)]):
        p_MV[row, id] = p
    slots, ids = Edit().edits(now, now.slots_N, p_MV.log())
    assert (slots.tolist(), ids.tolist()) == ([11, 19], [5, 8])
    slots, ids = Edit(threshold=0.8).edits(now, now.slots_N[[2, 4]], p_MV.log()[[2, 4]])
    assert (slots.tolist(), ids.tolist()) == ([15, 19], [5, 8])


def test_edits_are_those_of_diffusers() -> None:
    peer = diffusers.BlockRefinementScheduler(block_length=16)
    peer.set_timesteps(4)
    total = 0
    for seed in range(60):
        rng = generator(seed)
        ids_N = torch.randint(0, 6, (16,), generator=rng)
        given_N = torch.rand(16, generator=rng) < 0.3
        logits_NV = 4 * torch.randn(16, 6, generator=rng)
        logits_NV[:, 5] = -100.0
        theirs = peer.step(
            logits_NV[None],
            0,
            ids_N[None],
            mask_token_id=5,
            editing_threshold=0.6,
            prompt_mask=given_N,
            sampling_method="greedy",
        )
        own = (~given_N).nonzero()[:, 0]
        now = Block(own, ids_N[own], ids_N[own] != 5, torch.ones(len(own), dtype=torch.float64), 0, 4)
        slots, ids = Edit(threshold=0.6).edits(now, own, logits_NV[own].log_softmax(-1))
        assert slots.tolist() == theirs.editing_transfer_index[0].nonzero()[:, 0].tolist()
        assert torch.equal(ids, theirs.sampled_tokens[0, slots])
        total += len(slots)
    assert total > 60


def test_a_setting_makes_a_modifier_that_says_what_it_needs() -> None:
    remasker, editor = make({"name": "remdm-loop", "t_on": 0.6}), make("edit")
    assert isinstance(remasker, Remasker) and not isinstance(remasker, Editor)
    assert isinstance(editor, Editor) and not isinstance(editor, Remasker)
    assert remasker == Loop(t_on=0.6) and editor.post_steps == 16


@pytest.mark.parametrize(
    ("choice", "words", "code"),
    [
        ({"name": "remdm-cap", "eta": 1.5}, "'eta'", "bad_config"),
        ({"name": "remdm-loop", "t_off": 0.7}, "t_off", "bad_config"),
        ({"name": "remdm-loop", "alpha_on": -1}, "alpha_on", "bad_config"),
        ({"name": "edit", "threshold": "high"}, "threshold", "bad_config"),
        ({"name": "edit", "post_steps": 1.5}, "post_steps", "bad_config"),
        ({"name": "edit", "treshold": 0.5}, "did you mean 'threshold'", "bad_config"),
        ("remdm-capp", "remdm-cap", "unknown_name"),
    ],
)
def test_a_wrong_modifier_is_explained(choice: str | dict[str, object], words: str, code: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make(choice)
    assert caught.value.code == code
