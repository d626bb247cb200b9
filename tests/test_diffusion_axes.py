"""Schedules, orders and accept rules: published numbers, closed forms, brute force, other code, and their laws."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from cm3kit.decoders.diffusion import accepts, axes, orders, schedules
from cm3kit.decoders.diffusion.scores import Order, Scores
from cm3kit.decoders.diffusion.settings import Eoser
from cm3kit_tokenizers.errors import ConfigError

# Upper 0.1 % points of the chi-square distribution; the generators are seeded, so a test cannot flicker.
CHI_SQUARE = {3: 16.27, 5: 20.52, 23: 49.73}
CONFIDENCES = ("probability", "margin", "entropy")
sizes = st.integers(0, 700)
steps_ = st.integers(1, 900)
rows = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def generator(seed: int) -> Generator:
    rng = Generator()
    rng.manual_seed(seed)
    return rng


def scores_of(
    p_MV: Sequence[Sequence[float]],
    picks: Sequence[int] | None = None,
    step: int = 0,
    steps: int = 8,
    seed: int = 0,
) -> Scores:
    """Slots with these distributions; the picks are the likeliest unless given."""
    logp_MV = torch.tensor(p_MV, dtype=torch.float64).log().float()
    picks_M = logp_MV.argmax(-1) if picks is None else torch.tensor(picks)
    return Scores(torch.arange(len(p_MV)) + 5, logp_MV, picks_M, step, steps, generator(seed))


def chosen(accepted_M: Tensor) -> list[int]:
    return accepted_M.nonzero()[:, 0].tolist()


def chi_square(counts: Counter[object], expected: dict[object, float]) -> float:
    """Pearson's statistic; nothing outside `expected` may occur."""
    assert set(counts) <= set(expected)
    total = sum(counts.values())
    return sum((counts[key] - total * p) ** 2 / (total * p) for key, p in expected.items())


# Schedules


@pytest.mark.parametrize("name", ["uniform", "cosine", "arccos", "dream", "ascending"])
@settings(max_examples=40, deadline=None)
@given(blanks=sizes, steps=steps_)
def test_a_schedule_writes_every_slot_once_and_wastes_no_step(name: str, blanks: int, steps: int) -> None:
    counts = axes.schedule[name](blanks, steps)
    assert sum(counts) == blanks
    assert all(count >= 1 for count in counts)
    if name != "ascending":
        assert len(counts) <= min(blanks, steps)
        if steps > blanks:
            assert counts == [1] * blanks
    if name in ("uniform", "cosine", "arccos") and steps <= blanks:
        assert len(counts) == steps


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (schedules.uniform(10, 4), [3, 3, 2, 2]),
        (schedules.uniform(3, 3), [1, 1, 1]),
        (schedules.cosine(256, 12), [3, 6, 11, 15, 18, 22, 26, 27, 31, 31, 33, 33]),
        (schedules.cosine(5, 5), [1, 1, 1, 1, 1]),
        (schedules.arccos(256, 12), [1, 10, 14, 17, 19, 22, 24, 26, 28, 30, 32, 33]),
        (schedules.arccos(9, 1), [9]),
        (schedules.arccos(9, 2), [1, 8]),
        (schedules.arccos(64, 128), [1] * 64),
        (schedules.dream(10, 8), [1, 1, 1, 1, 1, 1, 1, 3]),
        (schedules.dream(256, 256), [1] * 254 + [2]),
        (schedules.dream(256, 300), [1] * 256),
        (schedules.ascending(7, 1), [1, 2, 4]),
        (schedules.ascending(8, 1), [1, 2, 4, 1]),
        (schedules.ascending(256, 1, mode="paper"), [1, 2, 4, 8, 16, 32, 64, 129]),
        (schedules.ascending(255, 1, mode="paper"), [1, 2, 4, 8, 16, 32, 192]),
        (schedules.ascending(128, 1, mode="paper"), [1, 2, 4, 8, 16, 32, 65]),
        (schedules.ascending(127, 1, mode="paper"), [1, 2, 4, 8, 16, 96]),
        (schedules.explicit(6, 99, counts=[3, 0, 2, 1]), [3, 2, 1]),
    ],
)
def test_published_counts(counts: list[int], expected: list[int]) -> None:
    assert counts == expected


def test_no_slots_need_no_steps() -> None:
    shipped = [name for name in axes.schedule if not name.startswith("test:")]
    assert shipped and all(axes.schedule[name](0, 5) == [] for name in shipped)
    assert schedules.ascending(0, 1, mode="paper") == []


def test_cosine_keeps_as_many_open_as_maskgit_does() -> None:
    for blanks, steps in itertools.product((1, 2, 17, 64, 200), (1, 2, 7, 16)):
        if steps > blanks:
            continue
        left, kept = blanks, []
        for step in range(steps):
            mask_len = math.floor(blanks * math.cos(math.pi / 2 * (step + 1) / steps))
            left = max(1, min(left - 1, mask_len)) if step < steps - 1 else 0
            kept.append(left)
        counts = schedules.cosine(blanks, steps)
        assert [blanks - done for done in itertools.accumulate(counts)] == kept


def test_arccos_never_shrinks_from_step_to_step_and_is_near_its_shares() -> None:
    for blanks, steps in itertools.product((40, 256, 1280), (3, 8, 12, 40)):
        counts = schedules.arccos(blanks, steps)
        assert counts == sorted(counts)
        weights = torch.arccos(torch.linspace(1, 0, steps, dtype=torch.float64))
        shares = (weights / weights.sum() * blanks).tolist()
        raised = sum(share < 1 for share in shares)
        assert all(abs(count - share) <= 1 + raised for count, share in zip(counts, shares, strict=True))


def test_arccos_counts_can_be_those_of_the_released_rounding() -> None:
    for blanks, steps in [(256, 12), (1280, 128), (64, 64), (65, 64), (70, 50), (9, 2), (300, 7)]:
        weights = torch.arccos(torch.linspace(1, 0, steps)) / (math.pi / 2)
        counts = (weights / weights.sum() * blanks).round().clamp(min=1).int().tolist()
        counts[-1] = max(0, blanks - sum(counts[:-1]))
        # The released sampler writes no more at a step than is open, and no pass is made for nothing.
        before = [0, *itertools.accumulate(counts)]
        clipped = [min(count, max(0, blanks - done)) for count, done in zip(counts, before, strict=False)]
        expected = [count for count in clipped if count]
        assert schedules.arccos(blanks, steps, rounding="nearest") == expected
        assert sum(expected) == blanks
    assert schedules.arccos(64, 128, rounding="nearest") == [1] * 64


def test_dream_counts_are_those_of_single_precision_times() -> None:
    # The released sampler works in fp32, where a product just under a whole number could be rounded up to it.
    for steps in (1, 2, 5, 8, 33, 64):
        times = torch.linspace(1, 1e-3, steps + 1)
        for blanks in range(steps, 150):
            left, counts = torch.tensor(float(blanks)), []
            for step in range(steps):
                share = 1 - times[step + 1] / times[step] if step < steps - 1 else torch.tensor(1.0)
                counts.append(int(left * share))
                left = left - counts[-1]
            assert schedules.dream(blanks, steps) == [count for count in counts if count]


def test_ascending_takes_logarithmically_many_steps() -> None:
    for blanks in range(1, 1025):
        counts = schedules.ascending(blanks, 3)
        assert len(counts) == math.ceil(math.log2(blanks + 1))
        assert counts[:-1] == [2**k for k in range(len(counts) - 1)]
        paper = schedules.ascending(blanks, 3, mode="paper")
        assert sum(paper) == blanks
        assert len(paper) == max(1, math.floor(math.log2(blanks)))


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 1024), data=st.data())
def test_ascending_blocks_deal_out_one_schedule(length: int, data: st.DataObject) -> None:
    whole = schedules.ascending(length, 1, mode="paper")
    blocks = data.draw(st.integers(1, len(whole)))
    dealt = schedules.ascending_blocks(length, blocks)
    assert len(dealt) == blocks
    assert [count for block in dealt for count in block] == whole
    assert all(len(block) == 1 for block in dealt[1:])


def test_ascending_blocks_have_the_released_sizes() -> None:
    assert schedules.ascending_blocks(128, 4) == [[1, 2, 4, 8], [16], [32], [65]]
    assert [sum(block) for block in schedules.ascending_blocks(300, 3)] == [63, 64, 173]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (partial(schedules.explicit, 5, 1, counts=[2, 2]), "sums to 4, but 5"),
        (partial(schedules.explicit, 5, 1, counts=[6, -1]), "none below 0"),
        (partial(schedules.explicit, 2, 1, counts=[1.5, 0.5]), "whole numbers"),
        (partial(schedules.explicit, 5, 1), "sums to 0"),
        (partial(schedules.uniform, 5, 0), "steps is 0"),
        (partial(schedules.dream, 5, 2, eps=2.0), "0..1"),
        (partial(schedules.dream, 5, 2, eps="small"), "give a number"),
        (partial(schedules.ascending, 5, 2, mode="clap"), "clip, paper"),
        (partial(schedules.arccos, 5, 2, rounding="up"), "remainder, nearest"),
        (partial(schedules.ascending_blocks, 8, 4), "1 to 3"),
        (partial(schedules.ascending_blocks, 8, 0), "1 to 3"),
    ],
)
def test_a_wrong_schedule_option_is_explained(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        call()
    assert caught.value.code == "bad_config"


# Orders


def test_confidences_are_their_closed_forms() -> None:
    scores = scores_of(
        [[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]], picks=[1, 3, 2]
    )
    torch.testing.assert_close(orders.probability(scores).tolist(), [0.3, 0.25, 1.0], rtol=0, atol=1e-7)
    torch.testing.assert_close(orders.margin(scores).tolist(), [0.2, 0.0, 1.0], rtol=0, atol=1e-7)
    entropy = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    torch.testing.assert_close(
        orders.entropy(scores).tolist(), [math.exp(-entropy), 0.25, 1.0], rtol=0, atol=1e-7
    )
    assert orders.left_to_right(scores).tolist() == pytest.approx([1.0, 2 / 3, 1 / 3])
    assert orders.joint(scores).tolist() == pytest.approx([1.0, 0.3 * 0.25, 0.3 * 0.25])
    sure = scores_of([[0.1, 0.9], [0.02, 0.98], [0.01, 0.99], [0.5, 0.5], [0.0, 1.0]], picks=[1, 1, 1, 0, 1])
    for tau, count in ((0.95, 1), (0.88, 2), (0.87, 3), (0.4, 5)):  # 1, .882, .873, .437, .437
        assert chosen(accepts.threshold(orders.joint(sure), 1, tau=tau)) == list(range(count))


def test_a_slot_with_one_possible_id_is_certain() -> None:
    only = Scores(torch.tensor([4]), torch.zeros(1, 1), torch.tensor([0]), 0, 1, generator(0))
    assert all(axes.order[name](only).tolist() == [1.0] for name in (*CONFIDENCES, "left-to-right", "joint"))


@pytest.mark.parametrize("name", list(axes.order))
def test_scores_are_in_the_unit_interval_and_come_from_the_rows_own_generator(name: str) -> None:
    p_MV = torch.rand(40, 6, generator=generator(3), dtype=torch.float64)
    p_MV = p_MV / p_MV.sum(-1, keepdim=True)
    before = torch.get_rng_state()
    first, again, other = (axes.order[name](scores_of(p_MV.tolist(), seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.dtype == torch.float64 and first.shape == (40,)
    assert bool(((first >= 0) & (first <= 1)).all())
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name not in ("random", "maskgit"))


@pytest.mark.parametrize("name", list(axes.order))
def test_no_open_slots_have_no_scores(name: str) -> None:
    none = Scores(torch.zeros(0).long(), torch.zeros(0, 4), torch.zeros(0).long(), 0, 4, generator(0))
    assert axes.order[name](none).shape == (0,)


@pytest.mark.parametrize("name", [*CONFIDENCES, "left-to-right", "joint"])
def test_equal_slots_are_written_from_left_to_right(name: str) -> None:
    scores = scores_of([[0.4, 0.3, 0.3]] * 9)
    assert chosen(accepts.top(axes.order[name](scores), 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", CONFIDENCES)
def test_low_temperature_ties_tempered_confidences_but_not_those_of_the_model(name: str) -> None:
    # At temperature 0.1 gaps of 4 and 4.5 nats both round to certainty in fp32, and the slots seem equal:
    # samplers that rank by what they drew from then write from left to right unnoticed.
    logits_MV = torch.tensor([[4.0, 0.0], [4.5, 0.0]])
    slots_M, picks_M = torch.arange(2), torch.zeros(2).long()
    base, tempered = (
        Scores(slots_M, logits_MV.div(heat).log_softmax(-1), picks_M, 0, 2, generator(0)) for heat in (1, 0.1)
    )
    score_M, tied_M = axes.order[name](base), axes.order[name](tempered)
    assert float(score_M[1]) - float(score_M[0]) > 1e-3
    assert abs(float(tied_M[1]) - float(tied_M[0])) < 1e-15
    assert chosen(accepts.top(score_M, 1)) == [1]


def test_the_random_order_is_uniform_over_permutations() -> None:
    scores = scores_of([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    seen = Counter(tuple(orders.random(scores).argsort().tolist()) for _ in range(2400))
    expected = {each: 1 / 24 for each in itertools.permutations(range(4))}
    assert chi_square(seen, expected) < CHI_SQUARE[23]


@pytest.mark.parametrize("name", CONFIDENCES)
def test_alg_temp_draws_without_replacement_by_softmax(name: str) -> None:
    table = [[0.9, 0.05, 0.05], [0.6, 0.2, 0.2], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3]]
    scores, heat = scores_of(table), 0.3
    confidence_M = axes.order[name](scores)
    weights = torch.softmax((confidence_M.log() if name == "entropy" else confidence_M) / heat, -1).tolist()
    expected: dict[object, float] = {
        (i, j): weights[i] * weights[j] * (1 / (1 - weights[i]) + 1 / (1 - weights[j]))
        for i, j in itertools.combinations(range(4), 2)
    }
    assert math.isclose(sum(expected.values()), 1)
    sampled = axes.bind(axes.order, {"name": name, "alg_temp": heat})
    seen = Counter(tuple(chosen(accepts.top(sampled(scores), 2))) for _ in range(1200))
    assert chi_square(seen, expected) < CHI_SQUARE[5]


@pytest.mark.parametrize(("ratio", "step", "fade"), [("next", 1, 0.5), ("now", 1, 0.75), ("now", 3, 0.25)])
def test_maskgit_noise_picks_slots_in_proportion_to_a_power_of_p(ratio: str, step: int, fade: float) -> None:
    tau = 2.0
    p = [0.9, 0.6, 0.3, 0.1]
    scores = scores_of([[each, 1 - each] for each in p], picks=[0] * 4, step=step, steps=4)
    powers = [each ** (1 / (tau * fade)) for each in p]
    order = axes.bind(axes.order, {"name": "maskgit", "tau": tau, "ratio": ratio})
    seen = Counter(int(order(scores).argmax()) for _ in range(1200))
    assert chi_square(seen, {k: power / sum(powers) for k, power in enumerate(powers)}) < CHI_SQUARE[3]


def test_maskgit_noise_is_gone_at_the_last_step_and_never_overflows() -> None:
    scores = scores_of([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]], step=7)
    torch.testing.assert_close(orders.maskgit(scores), orders.probability(scores), rtol=1e-12, atol=0)
    wild = orders.maskgit(scores_of([[0.5, 0.5]] * 50), tau=1e6)
    assert bool(torch.isfinite(wild).all()) and float(wild.max()) == 1.0


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"name": "probability", "alg_temp": -1}, "alg_temp"),
        ({"name": "margin", "alg_temp": math.nan}, "alg_temp"),
        ({"name": "maskgit", "tau": "hot"}, "tau"),
        ({"name": "maskgit", "ratio": "then"}, "next, now"),
    ],
)
def test_a_wrong_order_option_is_explained(choice: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        axes.bind(axes.order, choice)(scores_of([[0.5, 0.5]]))
    assert caught.value.code == "bad_config"


# EOS early rejection


def test_gamma_endpoints() -> None:
    linear, ascending = Eoser(), Eoser(least=0.01, schedule="ascending")
    assert [orders.gamma(linear, s, 5) for s in range(5)] == pytest.approx([0.4, 0.55, 0.7, 0.85, 1.0])
    assert orders.gamma(linear, 0, 1) == 1.0
    values = [orders.gamma(ascending, s, 8) for s in range(8)]
    assert [round(values[k], 4) for k in (0, 6, 7)] == [0.0139, 0.5011, 0.9961]
    assert values == pytest.approx([0.01 + 0.99 * (2 ** (s + 1) - 1) / 2**8 for s in range(8)])
    assert orders.gamma(ascending, 4999, 5000) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["linear", "ascending"])
def test_gamma_is_released_by_block_steps_and_by_board_steps(schedule: str) -> None:
    # A block's step counted against the board's steps would stay near the start in every block.
    soft = Eoser(schedule=schedule)  # type: ignore[arg-type]
    for steps in (4, 32):
        values = [orders.gamma(soft, s, steps) for s in range(steps)]
        assert values == sorted(values)
        assert values[-1] == pytest.approx(1.0, abs=0.6 / 2**steps)
        # A loop that runs longer than planned stays released.
        assert orders.gamma(soft, steps + 3, steps) == values[-1]


def order_of(values: Sequence[float]) -> Order:
    return lambda scores: torch.tensor(values, dtype=torch.float64)


def ended(ends: Sequence[bool], step: int, steps: int) -> Scores:
    """Picks of which these are the end id 1."""
    return scores_of([[0.5, 0.5]] * len(ends), picks=[int(end) for end in ends], step=step, steps=steps)


@pytest.mark.parametrize(("least", "winner"), [(0.4, 1), (1.0, 0)])
def test_eoser_prefers_an_answer_to_a_likelier_end(least: float, winner: int) -> None:
    order = orders.eoser(order_of([0.9, 0.5, 0.4]), Eoser(least=least), {1})
    assert chosen(accepts.top(order(ended([True, False, False], 0, 8)), 1)) == [winner]


@settings(max_examples=40, deadline=None)
@given(
    slots=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=9),
    schedule=st.integers(1, 9),
    step=st.integers(0, 7),
    least=st.floats(0, 1),
)
def test_no_end_is_written_while_enough_others_outrank_it(
    slots: list[tuple[float, bool]], schedule: int, step: int, least: float
) -> None:
    values, ends = [p for p, _ in slots], [end for _, end in slots]
    soft = Eoser(least=least)
    score_M = orders.eoser(order_of(values), soft, {1})(ended(ends, step, 8))
    written = chosen(accepts.top(score_M, schedule))
    assert len(written) == min(schedule, len(slots))
    bar = orders.gamma(soft, step, 8) * max((p for p, end in slots if end), default=0.0)
    if sum(p > bar for p, end in slots if not end) >= schedule:
        assert not any(ends[k] for k in written)


@pytest.mark.parametrize("setting", [Eoser(least=0.0), Eoser(hard=1.0)])
@pytest.mark.parametrize("rule", list(axes.accept))
def test_a_row_of_ends_alone_is_written(setting: Eoser, rule: str) -> None:
    score_M = orders.eoser(orders.probability, setting, {1})(ended([True] * 3, 0, 8))
    assert chosen(axes.accept[rule](score_M, 1))[0] == 0


@pytest.mark.parametrize("name", [*CONFIDENCES, "left-to-right", "maskgit"])
def test_eoser_without_damping_or_without_ends_is_the_order_itself(name: str) -> None:
    p_MV = torch.rand(30, 5, generator=generator(5), dtype=torch.float64)
    table = (p_MV / p_MV.sum(-1, keepdim=True)).tolist()
    plain_M = axes.order[name](scores_of(table))
    for setting, ends in ((Eoser(least=1.0), {0, 3}), (Eoser(), set()), (Eoser(hard=0.0), {0, 3})):
        assert torch.equal(orders.eoser(axes.order[name], setting, ends)(scores_of(table)), plain_M)


def test_eoser_damps_every_end_id_and_leaves_the_picks() -> None:
    scores = scores_of([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]], step=0)
    picks_M, logp_MV = scores.picks_M.clone(), scores.logp_MV.clone()
    damped_M = orders.eoser(orders.probability, Eoser(), {2, 1})(scores)
    assert damped_M.tolist() == pytest.approx([0.2, 0.32, 0.6])
    assert torch.equal(scores.picks_M, picks_M) and torch.equal(scores.logp_MV, logp_MV)


def test_hard_rejection_lasts_its_share_of_the_steps() -> None:
    order = orders.eoser(order_of([0.9, 0.5, 0.1]), Eoser(hard=0.5), {1})
    first = [chosen(accepts.top(order(ended([True, False, False], s, 8)), 1))[0] for s in range(8)]
    assert first == [1, 1, 1, 1, 0, 0, 0, 0]
    assert chosen(accepts.top(order(ended([True, False, False], 0, 8)), 2)) == [1, 2]


def test_eoser_ranks_negative_scores_lower_too() -> None:
    order = orders.eoser(order_of([-1.0, -1.5, -4.0]), Eoser(least=0.5), {1})
    assert chosen(accepts.top(order(ended([True, False, False], 0, 8)), 1)) == [1]


# Accept rules


@pytest.mark.parametrize("rule", list(axes.accept))
@settings(max_examples=40, deadline=None)
@given(values=rows, schedule=st.integers(0, 14))
def test_a_rule_accepts_the_schedule_best_at_least_and_a_leading_part_of_the_ranking(
    rule: str, values: list[float], schedule: int
) -> None:
    written = chosen(axes.accept[rule](torch.tensor(values, dtype=torch.float64), schedule))
    assert len(written) >= max(1, min(schedule, len(values)))
    ranking = sorted(range(len(values)), key=lambda k: (-values[k], k))
    assert sorted(written) == sorted(ranking[: len(written)])


@pytest.mark.parametrize("rule", list(axes.accept))
def test_no_slots_are_accepted_where_there_are_none(rule: str) -> None:
    assert axes.accept[rule](torch.zeros(0, dtype=torch.float64), 3).shape == (0,)


@pytest.mark.parametrize(
    ("values", "tau", "schedule", "written"),
    [
        ([0.95, 0.2, 0.9, 0.5], 0.9, 1, [0, 2]),
        ([0.95, 0.2, 0.9, 0.5], 0.9, 3, [0, 2, 3]),
        ([0.95, 0.2, 0.9, 0.5], 0.96, 1, [0]),
        ([1.0, 1.0, 1.0], 1.01, 1, [0]),
        ([0.0, 0.3, 0.1], 0.0, 1, [0, 1, 2]),
    ],
)
def test_threshold(values: list[float], tau: float, schedule: int, written: list[int]) -> None:
    assert chosen(accepts.threshold(torch.tensor(values), schedule, tau=tau)) == written


@pytest.mark.parametrize(
    ("values", "f", "count"),
    [
        ([0.9, 0.8, 0.7, 0.6], 1.0, 2),
        ([0.99] * 8, 1.0, 8),
        # The last of the row must pass as well; a released loop lets it through.
        ([0.2, 0.1], 1.0, 1),
        ([0.9] * 40, 1.0, 9),
        ([0.95] * 40, 1.0, 19),
        ([0.9] * 40, 0.5, 4),
        ([1.0] * 5, 0.0, 5),
    ],
)
def test_factor(values: list[float], f: float, count: int) -> None:
    score_M = torch.tensor(values, dtype=torch.float64)
    assert chosen(accepts.factor(score_M, 1, f=f)) == list(range(count))


def test_factor_finds_the_longest_prefix() -> None:
    for seed in range(200):
        score_M = torch.rand(9, generator=generator(seed), dtype=torch.float64) ** 0.1
        best, count = sorted(score_M.tolist(), reverse=True), 1
        while count < 9 and best[count] >= 1 - 1.5 / (count + 2):
            count += 1
        assert int(accepts.factor(score_M, 1, f=1.5).sum()) == count


@pytest.mark.parametrize(
    ("entropies", "bound", "written"),
    [
        ([0.5, 0.3, 0.9], 0.0, [1]),
        ([0.0, 0.3, 0.0, 0.4], 0.0, [0, 1, 2]),
        ([0.05, 0.06, 0.02, 0.5], 0.1, [0, 1, 2]),
        ([0.05, 0.06, 0.02, 0.5], 0.14, [0, 1, 2, 3]),
        ([math.inf, math.inf], 0.1, [0]),
    ],
)
def test_entropy_bound(entropies: list[float], bound: float, written: list[int]) -> None:
    score_M = (-torch.tensor(entropies, dtype=torch.float64)).exp()
    assert chosen(accepts.entropy_bound(score_M, 1, bound=bound)) == written


@pytest.mark.skipif(not hasattr(diffusers, "EntropyBoundScheduler"), reason="this diffusers has none")
def test_entropy_bound_accepts_what_diffusers_accepts() -> None:
    peer = diffusers.EntropyBoundScheduler(t_max=1.0, t_min=1.0)
    for seed in range(40):
        logits_1MV = 6 * torch.randn(1, 12, 7, generator=generator(seed))
        bound = 0.2 + 0.05 * seed
        theirs = peer.step(
            logits_1MV, 0, torch.zeros(1, 12).long(), entropy_bound=bound, generator=generator(seed)
        )
        logp_MV = logits_1MV[0].log_softmax(-1)
        scores = Scores(torch.arange(12), logp_MV, logp_MV.argmax(-1), 0, 1, generator(0))
        ours_M = accepts.entropy_bound(orders.entropy(scores), 1, bound=bound)
        assert torch.equal(ours_M, theirs.accepted_index[0])


def test_threshold_accepts_what_diffusers_accepts() -> None:
    peer = diffusers.BlockRefinementScheduler(block_length=12)
    peer.set_timesteps(5)
    for seed in range(40):
        logits_1MV = 3 * torch.randn(1, 12, 6, generator=generator(seed))
        logits_1MV[..., 5] = -100.0
        theirs = peer.step(
            logits_1MV, 0, torch.full((1, 12), 5), mask_token_id=5, threshold=0.8, sampling_method="greedy"
        )
        logp_MV = logits_1MV[0].log_softmax(-1)
        scores = Scores(torch.arange(12), logp_MV, logp_MV.argmax(-1), 0, 5, generator(0))
        ours_M = accepts.threshold(orders.probability(scores), schedules.uniform(12, 5)[0], tau=0.8)
        assert torch.equal(ours_M, theirs.transfer_index[0])


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"name": "factor", "f": -1}, "'f'"),
        ({"name": "entropy-bound", "bound": -0.1}, "bound"),
        ({"name": "threshold", "tau": True}, "tau"),
        ({"name": "threshold", "tua": 1.0}, "did you mean 'tau'"),
    ],
)
def test_a_wrong_accept_option_is_explained(choice: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        axes.bind(axes.accept, choice)(torch.ones(2), 1)
    assert caught.value.code == "bad_config"
