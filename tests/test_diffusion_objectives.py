"""Masked diffusion against closed forms, enumeration and counts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from canvases import at_most, flat_spans, lay_out
from torch import Tensor

from cm3kit.fill.layouts import put_back
from cm3kit.models.attention import block_mask
from cm3kit.objectives import BlockDiffusion, CausalMask, Hybrid, MaskedDiffusion
from cm3kit.objectives.gaps import LENGTHS, GapLaw
from cm3kit.objectives.noise import EPSILON, schedule, times
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
WORDS = list(VOCAB.text)
CODES = list(VOCAB.image)


def page(words: int = 3, pictures: int = 1) -> list[int]:
    """<title>words</title><p>words</p> and pictures with alt texts."""
    ids = [
        PIECE("<title>"),
        *WORDS[:words],
        PIECE("</title>"),
        PIECE("<p>"),
        *WORDS[5 : 5 + words],
        PIECE("</p>"),
    ]
    for number in range(pictures):
        codes = CODES[number : number + GRID[0] * GRID[1]]
        ids += [
            PIECE("<img"),
            PIECE(' alt="'),
            *WORDS[10:12],
            PIECE('"'),
            PIECE(' src="'),
            *codes,
            PIECE('"'),
            PIECE(">"),
        ]
    return ids


def masked(**how: Any) -> MaskedDiffusion:
    return MaskedDiffusion(VOCAB, grid=GRID, **how)


SCHEDULES = ("linear", "log-linear", "cosine", "geometric")


@pytest.mark.parametrize("name", SCHEDULES)
def test_weights_are_the_slope_of_survival_over_what_is_hidden(name: str) -> None:
    noise = schedule[name]
    for t in (0.05, 0.3, 0.7, 0.95):
        step = 1e-6
        slope = (noise.alpha(t + step) - noise.alpha(t - step)) / (2 * step)
        assert noise.slope(t) == pytest.approx(-slope, rel=1e-4)
        assert noise.weight(t) == pytest.approx(-slope / (1 - noise.alpha(t)), rel=1e-4)
        sigma = -math.log(noise.alpha(t))
        rate = -slope / noise.alpha(t)
        assert noise.weight(t) == pytest.approx(rate / math.expm1(sigma), rel=1e-4)
        assert noise.weight(t, 5.0) == pytest.approx(rate / (math.expm1(sigma) + 1 / 5), rel=1e-4)
    assert noise.alpha(1.0) == pytest.approx(0, abs=2e-3) and noise.alpha(1e-9) == pytest.approx(1, abs=2e-4)


def test_linear_and_log_linear_weigh_by_one_over_t() -> None:
    for t in (0.01, 0.2, 1.0):
        assert schedule["linear"].weight(t) == pytest.approx(1 / t)
        assert schedule["log-linear"].weight(t) == pytest.approx(1 / t)


LENGTH, SIZE = 3, 2


def tables(seed: int) -> dict[tuple[int, frozenset[int]], float]:
    """Arbitrary −log p(x_i | the places that are not hidden), which no joint distribution needs to agree with."""
    rng = generator(seed)
    found = {}
    for count in range(1, LENGTH + 1):
        for hidden in itertools.combinations(range(LENGTH), count):
            for place in hidden:
                p = float(torch.rand((), generator=rng, dtype=torch.float64)) * 0.9 + 0.05
                found[place, frozenset(hidden)] = -math.log(p)
    return found


def bound_by_sets(nats: dict[tuple[int, frozenset[int]], float]) -> float:
    """Sum over what may be hidden of 1 / (|M| C(L, |M|)) of its nats."""
    total = 0.0
    for count in range(1, LENGTH + 1):
        for hidden in itertools.combinations(range(LENGTH), count):
            share = 1 / (count * math.comb(LENGTH, count))
            total += share * sum(nats[place, frozenset(hidden)] for place in hidden)
    return total


def bound_by_orders(nats: dict[tuple[int, frozenset[int]], float]) -> float:
    """Mean over orders of writing of the nats along them."""
    orders = list(itertools.permutations(range(LENGTH)))
    return sum(
        nats[place, frozenset(order[step:])] for order in orders for step, place in enumerate(order)
    ) / len(orders)


def sums_by_count(nats: dict[tuple[int, frozenset[int]], float]) -> dict[int, float]:
    """For each number of hidden places, the nats summed over all ways to hide so many."""
    sums = dict.fromkeys(range(1, LENGTH + 1), 0.0)
    for (_, hidden), each in nats.items():
        sums[len(hidden)] += each
    return sums


def bound_by_counts(nats: dict[tuple[int, frozenset[int]], float]) -> float:
    """The mean over k = 1 … L of L / k times the mean nats of k hidden places (LLaDA's estimate of likelihood)."""
    sums = sums_by_count(nats)
    return sum(LENGTH / k * sums[k] / math.comb(LENGTH, k) for k in sums) / LENGTH


def bound_by_time(
    nats: dict[tuple[int, frozenset[int]], float], name: str, low: float = 0.0, rest: bool = False
) -> float:
    """The integral over time of weight times expected nats, by the midpoint rule in √t, which spreads out t = 0.

    With `rest` of the other copy of each pair.
    """
    noise, steps, total = schedule[name], 4000, 0.0
    sums = sums_by_count(nats)
    for step in range(steps):
        u = (step + 0.5) / steps
        t = 1 - (1 - low) * u**2 if rest else low + (1 - low) * u**2
        hide = noise.alpha(t) if rest else 1 - noise.alpha(t)
        expected = sum(hide**k * (1 - hide) ** (LENGTH - k) * sums[k] for k in sums)
        weight = noise.rest_weight(t) if rest else noise.weight(t)
        total += weight * expected * (1 - low) * 2 * u / steps
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_the_same_by_sets_by_orders_and_under_every_schedule(seed: int) -> None:
    nats = tables(seed)
    exact = bound_by_sets(nats)
    assert bound_by_orders(nats) == pytest.approx(exact, abs=1e-9)
    assert bound_by_counts(nats) == pytest.approx(exact, abs=1e-9)
    for name, slack in (("linear", 1e-6), ("cosine", 1e-5)):
        assert bound_by_time(nats, name) == pytest.approx(exact, rel=slack)
    for name in (
        "log-linear",
        "geometric",
    ):  # their ends are at ε and e^−20, so the integral misses that much
        assert bound_by_time(nats, name) == pytest.approx(exact, rel=3e-3)
    for name in SCHEDULES:  # the weight of the other copy is capped where almost nothing is left to ask
        assert bound_by_time(nats, name, rest=True) == pytest.approx(exact, rel=3e-3)


def test_a_consistent_joint_gives_its_own_log_probability() -> None:
    rng = generator(5)
    joint = torch.rand((SIZE,) * LENGTH, generator=rng, dtype=torch.float64)
    joint /= joint.sum()
    x = (0, 1, 1)
    nats = {}
    for count in range(1, LENGTH + 1):
        for hidden in itertools.combinations(range(LENGTH), count):
            for place in hidden:
                seen = tuple(slice(None) if at in hidden else x[at] for at in range(LENGTH))
                with_place = tuple(
                    slice(None) if at in hidden and at != place else x[at] for at in range(LENGTH)
                )
                nats[place, frozenset(hidden)] = -math.log(float(joint[with_place].sum() / joint[seen].sum()))
    assert bound_by_sets(nats) == pytest.approx(-math.log(float(joint[x])), abs=1e-12)


def bound_from(nats: dict[tuple[int, frozenset[int]], float], low: float) -> float:
    """The mean over t drawn from [low, 1] alike: k hidden places count by an incomplete beta integral.

    That is 1 / (k C(L, k)), as without a cut, times the chance that fewer than k of L uniform numbers are under low.
    """
    total = 0.0
    for k, nats_k in sums_by_count(nats).items():
        fewer = sum(math.comb(LENGTH, j) * low**j * (1 - low) ** (LENGTH - j) for j in range(k))
        total += nats_k / (k * math.comb(LENGTH, k)) * fewer
    return total / (1 - low)


def test_cutting_time_at_epsilon_costs_a_known_share() -> None:
    nats = tables(1)
    for low in (EPSILON, 0.1):
        by_time = bound_by_time(nats, "linear", low=low) / (1 - low)
        assert by_time == pytest.approx(bound_from(nats, low), rel=1e-6)
    assert bound_from(nats, 0.0) == pytest.approx(bound_by_sets(nats), abs=1e-12)
    assert 0 < abs(bound_from(nats, EPSILON) / bound_by_sets(nats) - 1) < 1e-3


@pytest.mark.parametrize(("name", "pairs"), [("linear", False), ("linear", True), ("cosine", True)])
def test_examples_estimate_the_bound_without_bias(name: str, pairs: bool) -> None:
    nats = tables(1)
    objective = MaskedDiffusion(Vocab(60, 0), schedule=name, complementary_masks=pairs, hides="all")
    rng, each_by = generator(0), 2 if pairs else 1
    samples = []
    for _ in range(100):
        for each in objective.make_examples([WORDS[:LENGTH]] * 100, rng, 20):
            assert each.inputs is not None
            hidden = frozenset(at - 1 for at in range(1, 1 + LENGTH) if each.inputs[at] == MASK)
            samples.append(sum(each.weights[at + 1] * nats[at, hidden] for at in hidden))
    values = torch.tensor(samples, dtype=torch.float64).view(-1, each_by)
    exact = bound_from(nats, EPSILON) if name == "linear" else bound_by_sets(nats)
    for copy in values.unbind(1):
        error = float(copy.std()) / math.sqrt(len(copy))
        assert abs(float(copy.mean()) - exact) < 4 * error
    # Each copy alone is unbiased, and no id is asked for in both: their covariance id by id is at most 0.
    both = values.mean(1)
    assert abs(float(both.mean()) - exact) < 4 * float(both.std()) / math.sqrt(len(both))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_model_hears_the_share_that_is_hidden_whatever_the_schedule(name: str) -> None:
    rng, t = generator(16), 0.3
    first, second = masked(schedule=name, complementary_masks=True).make_example(page(), t, rng, 90)
    hidden = 1 - schedule[name].alpha(t)
    assert (first.time, second.time) == pytest.approx((hidden, 1 - hidden))
    inner = masked(schedule=name, hides="all")
    (each,) = BlockDiffusion(VOCAB, block_size=40, inner=inner).make_example(WORDS[:30], rng, 90)
    assert isinstance(each.time, list) and each.inputs is not None
    level = each.time[0]
    assert 0 <= level <= 1 and each.time == [level] * 32 + [0.0] * 32
    # 4.5 standard deviations of a count of 30.
    assert abs(each.inputs[:32].count(MASK) - 30 * level) < 4.5 * math.sqrt(30 * level * (1 - level)) + 1


def test_what_is_seen_does_not_tell_how_long_an_answer_is() -> None:
    law = GapLaw(all=1.0, exact=0, spare=0)
    seen = set()
    for count in (1, 2, 3):
        ids = [PIECE("<p>"), *WORDS[:count], PIECE("</p>")]
        (each,) = masked(law=law).make_example(ids, 1.0, generator(17), 40)
        seen.add(tuple(each.inputs or ()))
    assert seen == {(EOD, PIECE("<p>"), *[MASK] * 4, PIECE("</p>"), EOD)}


def hidden_of(each: Example) -> list[bool]:
    assert each.inputs is not None
    return [seen == MASK and id != MASK for seen, id in zip(each.inputs, each.ids, strict=True)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_ids_are_hidden_at_the_rate_of_the_schedule(name: str) -> None:
    objective = masked(schedule=name, hides="all")
    rng, t, ids = generator(2), 0.4, WORDS[:40]
    rate = 1 - schedule[name].alpha(t)
    count = sum(sum(hidden_of(objective.make_example(ids, t, rng, 60)[0])) for _ in range(400))
    spread = math.sqrt(400 * 40 * rate * (1 - rate)) + 1e-9
    assert abs(count - 400 * 40 * rate) < 4.5 * spread + 1


def test_times_hit_every_part_once() -> None:
    for count in (1, 3, 16):
        drawn = times(count, generator(count), 0.0, 1.0)
        assert sorted(int(t * count + 1e-9) % count for t in drawn) == list(range(count))


def test_what_is_given_and_padding_have_no_loss_and_no_gradient() -> None:
    rng = generator(3)
    examples = masked().make_examples([page(pictures=2)] * 30, rng, 90)
    for each in examples:
        assert each.inputs is not None and each.noisy == [True] * len(each.ids)
        for seen, id, weight in zip(each.inputs, each.ids, each.weights, strict=True):
            assert (weight > 0) <= (seen == MASK)
            assert seen in (MASK, id)
    packed = pack(examples[:3], 2, 100)
    logits_BTV = torch.zeros(2, 100, len(VOCAB), requires_grad=True)
    nats_BT = torch.nn.functional.cross_entropy(
        logits_BTV.transpose(1, 2), packed.targets_BT, reduction="none"
    )
    (nats_BT * packed.weights_BT).sum().backward()
    touched_BT = logits_BTV.grad.abs().sum(-1) > 0
    assert torch.equal(touched_BT, packed.weights_BT > 0)
    assert not touched_BT[packed.documents_BT == 0].any() and not touched_BT[packed.ids_BT != MASK].any()


def test_answers_alone_are_noised_over_a_thousand_draws() -> None:
    rng, ids = generator(4), page(pictures=1)
    objective = masked(law=GapLaw(all=0, picture=1, box=0, words=0, exact=1))
    given = [id for id in ids if id < VOCAB.image.start]
    for _ in range(1000):
        (each,) = objective.make_example(ids, 1.0, rng, 60)
        assert each.inputs is not None
        assert [id for id in each.inputs if id != MASK][1:-1] == given


def test_norms_of_a_case_by_hand() -> None:
    def loss(norm: Any, nats: float = 2.0) -> float:
        examples = [
            masked(hides="all", norm=norm)._ask(layout, hidden, 0.5, 2.0, lambda id: False, False)
            for layout, hidden in cases
        ]
        packed = pack(examples, 2, 8)
        return float((packed.weights_BT * nats).sum() / packed.mass)

    from cm3kit.objectives.gaps import Layout

    cases = [
        (Layout(WORDS[:3], [True] * 3, ()), [True, False, True]),
        (Layout(WORDS[:2], [True] * 2, ()), [False, True]),
    ]
    assert loss("token") == pytest.approx((2 * 2 * 2 + 2 * 2) / 5)
    assert loss("sequence") == pytest.approx((8 / 3 + 4 / 2) / 2)
    assert loss("batch") == pytest.approx((8 + 4) / 2)


def test_pairs_hide_every_id_of_a_gap_exactly_once() -> None:
    rng = generator(6)
    for name in SCHEDULES:
        for t in (0.01, 0.3, 0.9, 1.0):
            first, second = masked(complementary_masks=True, schedule=name).make_example(page(), t, rng, 80)
            assert first.ids == second.ids
            slots = [a != b for a, b in zip(hidden_of(first), hidden_of(second), strict=True)]
            assert sum(slots) == sum(hidden_of(first)) + sum(hidden_of(second))
            gaps = {at for span in first.spans for at in range(span.start, span.stop)}
            assert {at for at, slot in enumerate(slots) if slot} == gaps


def test_text_gaps_end_in_eoss_to_a_length_that_use_knows_and_pictures_never() -> None:
    rng, seen = generator(7), set()
    for each in masked().make_examples([page(words=5, pictures=2)] * 300, rng, 200):
        for span in each.spans:
            answer = each.ids[span.start : span.stop]
            if answer[0] in VOCAB.image:
                assert EOSS not in answer and len(answer) <= 6
                continue
            if EOSS in answer:
                first = answer.index(EOSS)
                assert first and set(answer[first:]) == {EOSS} and len(answer) in LENGTHS
                seen.add(len(answer))
        kept = [id for id in each.ids if id not in (EOSS, EOD)]
        assert kept == page(words=5, pictures=2)
    assert len(seen) >= 3


@pytest.mark.parametrize("budget", [26, 27, 30, 33, 40])
def test_examples_keep_to_their_budget(budget: int) -> None:
    rng = generator(budget)
    for each in masked(complementary_masks=True).make_examples([page(words=5, pictures=2)] * 60, rng, budget):
        assert len(each.ids) <= budget and any(hidden_of(each)) in (True, False)
        starts = {
            at for at, id in enumerate(each.ids) if id in VOCAB.image and each.ids[at - 1] not in VOCAB.image
        }
        assert all(set(each.ids[at : at + 6]) <= set(CODES) for at in starts)
    with pytest.raises(ConfigError):
        masked().make_examples([page()], rng, 2)


def test_dropping_the_condition_hides_given_words_and_pictures_without_a_loss() -> None:
    rng = generator(8)
    for each in masked(cond_dropout=1.0).make_examples([page(pictures=2)] * 20, rng, 120):
        assert each.inputs is not None
        gaps = {at for span in each.spans for at in range(span.start, span.stop)}
        for at, seen in enumerate(each.inputs):
            if at not in gaps:
                assert (seen == MASK) == (each.ids[at] >= VOCAB.text.start) and not each.weights[at]
    for each in BlockDiffusion(VOCAB, 8, inner=masked(cond_dropout=1.0)).make_examples(
        [page()] * 10, rng, 240
    ):
        assert each.inputs is not None
        size = len(each.ids) // 2
        gaps = {at for span in each.spans for at in range(span.start, span.stop)}
        for at in range(size):
            given, clean = each.ids[at] >= VOCAB.text.start and at not in gaps, each.inputs[size + at]
            assert (clean == MASK) == given and (each.inputs[at] == MASK or not given)
            assert not (given and each.weights[at])


def test_a_modality_is_hidden_whole_and_has_no_loss() -> None:
    rng, law, kinds = generator(9), GapLaw(all=1.0), set()
    for each in masked(modality_dropout=1.0, law=law).make_examples([page()] * 40, rng, 120):
        assert each.inputs is not None
        gaps = [at for span in each.spans for at in range(span.start, span.stop)]
        scored = {each.ids[at] >= VOCAB.image.start for at in gaps if each.weights[at]}
        assert len(scored) <= 1
        kinds |= scored
        for images in {True, False} - scored if scored else ():
            assert all(
                each.inputs[at] == MASK for at in gaps if (each.ids[at] >= VOCAB.image.start) == images
            )
    assert kinds == {True, False}


def test_only_so_many_ends_have_a_loss() -> None:
    rng = generator(10)
    law = GapLaw(all=1.0, exact=0)
    for each in masked(ends=2, law=law).make_examples([page()] * 30, rng, 200):
        for span in each.spans:
            ends = [at for at in range(span.start, span.stop) if each.ids[at] == EOSS]
            assert not any(each.weights[at] for at in ends[2:])
    blocks = BlockDiffusion(VOCAB, 64, low=0.99, inner=masked(ends=2, law=law))
    for each in blocks.make_examples([page()] * 10, rng, 200):
        for span in each.spans:
            ends = [at for at in range(span.start, span.stop) if each.ids[at] == EOSS]
            assert not any(each.weights[at] for at in ends[2:])
            assert not ends or any(each.weights[at] for at in ends)


def test_weights_by_modality_and_flat_ones() -> None:
    rng = generator(11)
    how = masked(weighting="uniform", text_weight=0.5, image_weight=3.0, law=GapLaw(all=1.0))
    for each in how.make_examples([page()] * 20, rng, 120):
        for id, weight in zip(each.ids, each.weights, strict=True):
            assert weight in (0.0, 3.0 if id >= VOCAB.image.start else 0.5)
        assert each.mass == sum(hidden_of(each))
    blocks = BlockDiffusion(VOCAB, 8, inner=masked(weighting="uniform", law=GapLaw(all=1.0)))
    for each in blocks.make_examples([page()] * 5, rng, 200):
        assert each.mass == sum(weight > 0 for weight in each.weights)
    for each in masked(weighting="uniform", modality_dropout=1.0, law=GapLaw(all=1.0)).make_examples(
        [page()] * 20, rng, 120
    ):
        # What is hidden for good is not asked for.
        assert each.mass == sum(weight > 0 for weight in each.weights)


def test_ordered_pages_are_hidden_from_the_right_and_scored_near_what_is_shown() -> None:
    objective = masked(ordered=1.0, ahead=4, hides="all")
    seen = set()
    for seed in range(40):
        each = objective.make_examples([page()], generator(seed), 100)[0]
        hidden = [place for place, hide in enumerate(hidden_of(each)) if hide]
        assert hidden == list(range(hidden[0], len(each.ids) - 1))  # all but the `<eod>`
        assert [place for place, weight in enumerate(each.weights) if weight] == hidden[:4]
        assert each.mass == min(4, len(hidden))
        first = each.weights[hidden[0]]
        assert [first / each.weights[place] for place in hidden[:4]] == pytest.approx(
            range(1, len(hidden[:4]) + 1)
        )
        assert sum(each.weights) == pytest.approx(each.mass)
        seen.add(len(hidden))
    assert len(seen) > 12 and max(seen) == len(page())
    some = masked(ordered=0.5, ahead=100, hides="all").make_examples([page()] * 400, generator(0), 100)
    prefixes = sum(hide == sorted(hide) for hide in (hidden_of(each)[1:-1] for each in some))
    assert 170 < prefixes < 260
    with pytest.raises(ConfigError, match="ordered"):
        masked(ordered=0.5, complementary_masks=True)
    with pytest.raises(ConfigError, match="ordered"):
        BlockDiffusion(VOCAB, inner=masked(ordered=0.5))


def test_shifted_targets_stand_one_place_earlier_when_packed() -> None:
    rng = generator(12)
    examples = masked(shift=True).make_examples([page()] * 2, rng, 60)
    packed = pack(examples, 1, 120)
    for number, each in enumerate(examples, 1):
        at = (packed.documents_BT[0] == number).nonzero()[:, 0]
        assert packed.targets_BT[0, at].tolist()[:-1] == each.ids[1:]
        assert packed.weights_BT[0, at].tolist() == pytest.approx([*each.weights[1:], 0.0])
        assert packed.times_BT[0, at].tolist() == pytest.approx([each.time] * len(at))


def sees(each: Example) -> Tensor:
    packed = pack([each], 1, len(each.ids))
    return block_mask(packed.documents_BT, packed.blocks_BT, packed.noisy_BT)[0, 0]


def test_block_diffusion_lays_the_noised_page_before_the_clean_one() -> None:
    rng, ids = generator(13), WORDS[:6]
    objective = BlockDiffusion(VOCAB, block_size=4)
    (each,) = objective.make_example(ids, rng, 40)
    assert each.inputs is not None and each.places == [*range(8), *range(8)]
    assert each.ids[:8] == each.ids[8:] == each.inputs[8:] == [EOD, *ids, EOD]
    assert not any(each.weights[8:]) and each.shift is False
    mask_QK = sees(each)
    # With 8 ids and blocks of 4: 32 pairs inside noised blocks, 16 to earlier clean ones, 48 among clean ids.
    assert [int(mask_QK[:8, :8].sum()), int(mask_QK[:8, 8:].sum()), int(mask_QK[8:, 8:].sum())] == [
        32,
        16,
        48,
    ]
    assert not mask_QK[8:, :8].any()
    one, whole = (
        BlockDiffusion(VOCAB, 1).make_example(ids, rng, 40)[0],
        BlockDiffusion(VOCAB, 99).make_example(ids, rng, 40)[0],
    )
    assert torch.equal(sees(one)[8:, 8:], torch.ones(8, 8, dtype=torch.bool).tril())
    assert sees(whole)[:8, :8].all() and not sees(whole)[:8, 8:].any()


def test_blocks_have_times_of_their_own_that_spread_evenly() -> None:
    (each,) = BlockDiffusion(VOCAB, block_size=2, low=0.3, high=0.8).make_example(
        WORDS[:14], generator(14), 60
    )
    assert isinstance(each.time, list)
    levels = each.time[:16:2]
    assert each.time[:16] == [t for t in levels for _ in range(2)] and each.time[16:] == [0.0] * 16
    assert sorted(int((t - 0.3) / 0.5 * 8) for t in levels) == list(range(8))
    for weight, seen, t in zip(each.weights[:16], (each.inputs or [])[:16], each.time[:16], strict=True):
        assert weight == (pytest.approx(1 / t) if seen == MASK else 0)
    for bad in ({"block_size": 0}, {"low": 0.5, "high": 0.5}, {"inner": masked(shift=True)}):
        with pytest.raises(ConfigError):
            BlockDiffusion(VOCAB, **bad)


def test_pairs_of_block_diffusion_hide_every_id_of_a_block_exactly_once() -> None:
    for name in SCHEDULES:
        inner = masked(hides="all", complementary_masks=True, schedule=name)
        first, second = BlockDiffusion(VOCAB, 4, inner=inner).make_example(WORDS[:14], generator(18), 60)
        assert (
            isinstance(first.time, list) and isinstance(second.time, list) and first.inputs and second.inputs
        )
        assert first.inputs[16:] == second.inputs[16:] == first.ids[16:]
        seen = [(a == MASK) + (b == MASK) for a, b in zip(first.inputs[:16], second.inputs[:16], strict=True)]
        assert seen == [0, *[1] * 14, 0]
        assert [a + b for a, b in zip(first.time[:16], second.time[:16], strict=True)] == pytest.approx(
            [1] * 16
        )


def test_hybrid_keeps_its_share_in_every_batch_and_in_the_long_run() -> None:
    objective = Hybrid(CausalMask(VOCAB, grid=GRID), masked(shift=True), share=0.3)
    rng, causal = generator(15), 0
    for _ in range(200):
        made = objective.make_examples([page()] * 7, rng, 120)
        count = sum(each.noisy is None for each in made)
        assert len(made) == 7 and count in (2, 3)
        causal += count
    assert causal / 1400 == pytest.approx(0.3, abs=0.02)
    assert objective.masks and [use.decoder for use in objective.uses(64)] == ["cm3", "diffusion"]
    with pytest.raises(ConfigError):
        Hybrid(CausalMask(VOCAB), masked(), share=1.5)


def test_masked_positions_are_in_place_and_answers_are_put_back() -> None:
    ids = [
        PIECE("<p>"),
        WORDS[0],
        Gap(0, "content"),
        PIECE("</p>"),
        *CODES[:2],
        Gap(1, "image", 2),
        *CODES[4:6],
    ]
    limits = at_most(4, slots=True)
    laid = lay_out("in-place", VOCAB, ids, limits, seed=9, guided=True)
    assert laid.flatten(MASK).ids == (
        EOD,
        PIECE("<p>"),
        WORDS[0],
        *[MASK] * 4,
        PIECE("</p>"),
        *CODES[:2],
        MASK,
        MASK,
        *CODES[4:6],
        EOD,
    )
    assert [(each.start, each.stop, each.padded, each.kind) for each in flat_spans(laid)] == [
        (3, 7, True, "content"), (10, 12, False, "image"),
    ]  # fmt: skip
    guide = laid.guides[0].flatten(MASK).ids
    assert guide == (EOD, PIECE("<p>"), MASK, *[MASK] * 4, PIECE("</p>"), *[MASK] * 6, EOD)
    fills = [Fill((WORDS[3],), (-1.0,), True), Fill(tuple(CODES[7:9]), (-1.0,), True)]
    assert put_back(ids, laid, fills) == [
        PIECE("<p>"), WORDS[0], WORDS[3], PIECE("</p>"), *CODES[:2], *CODES[7:9], *CODES[4:6],
    ]  # fmt: skip
    with pytest.raises(PageError):
        lay_out("in-place", VOCAB, [PIECE("<p>")], limits)
    with pytest.raises(ValueError):
        put_back(ids, laid, fills[:1])


def test_examples_depend_on_the_generator_alone() -> None:
    for objective in (
        masked(complementary_masks=True, cond_dropout=0.3, modality_dropout=0.3),
        BlockDiffusion(VOCAB, 4),
    ):
        state = torch.get_rng_state()
        first = objective.make_examples([page()] * 5, generator(1), 90)
        assert first == objective.make_examples([page()] * 5, generator(1), 90)
        assert first != objective.make_examples([page()] * 5, generator(2), 90)
        assert torch.equal(state, torch.get_rng_state())
