"""Scores, ratios, losses and advantages against vectors that were computed apart, and against enumeration."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.polynomial.legendre import leggauss
from pydantic import ValidationError
from torch import Tensor

from cm3kit.rng import generator
from cm3kit.training.rl.episode import Episode, View, Write, masked_views
from cm3kit.training.rl.estimators import Estimator, EstimatorSettings, Plan, known, read_settings
from cm3kit.training.rl.estimators.coupled import coupled_plan
from cm3kit.training.rl.losses import AdvantageName, LossSettings, Scores, advantages, clipped_loss, k3

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "data/rl_vectors.json").read_text())
MASK, PROMPT, ANSWER = 4, 1, (2, 0, 3)
Table = Callable[[Sequence[int]], Tensor]


class TableModel:
    """The model of the vectors: logits of three positions behind a prompt of one id."""

    def __init__(self, delta: float, grad: bool = False) -> None:
        bias = [[round(0.3 * math.sin(1 + k + 2 * v + delta), 3) for v in range(4)] for k in range(3)]
        pair = [
            [[round(0.5 * math.cos(1 + d + 2 * a + 3 * v + delta), 3) for v in range(4)] for a in range(4)]
            for d in range(4)
        ]
        self.b = torch.tensor(bias, dtype=torch.float64, requires_grad=grad)
        self.w = torch.tensor(pair, dtype=torch.float64)
        self._known: dict[tuple[int, ...], Tensor] = {}

    def logp(self, row: Sequence[int]) -> Tensor:
        """Log-probabilities (3, 4)."""
        if (*row,) not in self._known:
            rows = []
            for k in range(3):
                seen = [self.w[(j - k) % 4][row[j]] for j in range(4) if row[j] != MASK and j != k + 1]
                rows.append(self.b[k] + sum(seen))
            self._known[*row,] = torch.stack(rows).log_softmax(-1)
        return self._known[*row,]

    def scores(self, made: Estimator, plan: Plan) -> Tensor:
        """Of the tokens of a plan."""
        found = [
            self.logp(view.row)[place - 1, id]
            for view in plan.views
            for place, id in zip(view.positions, view.ids, strict=True)
        ]
        return made.combine([plan], torch.stack(found))


def episode(answer: Sequence[int] = ANSWER, order: Sequence[Sequence[int]] = ((1,), (0, 2))) -> Episode:
    """The answer, written by passes over answer positions."""
    writes = tuple(
        Write(step, tuple(k + 1 for k in ks), tuple(answer[k] for k in ks), (True,) * len(ks))
        for step, ks in enumerate(order)
    )
    return Episode((PROMPT, *[MASK] * len(answer)), writes, MASK)


def make(name: str, **settings: Any) -> Estimator:
    chosen = read_settings({"name": name, **settings})
    return known()[chosen.name](chosen)


THETA, OLD, REF = TableModel(0.1), TableModel(0.0), TableModel(-0.2)


def planned(name: str) -> tuple[Estimator, Plan]:
    made = make(name)
    if name == "coupled":
        return made, coupled_plan(episode(), {1, 3}, 0.4)
    return made, made.plan(episode(), generator(0))


def by_position(plan: Plan, values: Tensor) -> list[float]:
    """Values of tokens from left to right."""
    where = {
        token: place for view in plan.views for token, place in zip(view.tokens, view.positions, strict=True)
    }
    return [float(values[token]) for token in sorted(where, key=lambda each: where[each])]


def close(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return len(found) == len(wanted) and all(
        abs(one - other) < 1.0001e-6 for one, other in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "key"), [("one-pass", "one_pass"), ("coupled", "coupled"), ("trajectory", "traj")]
)
def test_scores_are_those_of_the_vectors(name: str, key: str) -> None:
    made, plan = planned(name)
    for model, suffix in ((THETA, "theta"), (OLD, "old"), (REF, "ref")):
        assert close(by_position(plan, model.scores(made, plan)), VECTORS[f"{key}_{suffix}"])


def scores_of(
    made: Estimator, plan: Plan, advantage: float, model: TableModel = THETA, old: TableModel = OLD
) -> Scores:
    steps = torch.tensor(plan.steps)
    now, before, ref = (each.scores(made, plan) for each in (model, old, REF))
    return Scores(
        now, before, ref, torch.zeros_like(steps), steps, torch.tensor([advantage], dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("name", "key"), [("one-pass", "one_pass"), ("coupled", "coupled"), ("trajectory", "cj")]
)
def test_ratios_divergences_and_losses_are_those_of_the_vectors(name: str, key: str) -> None:
    made, plan = planned(name)
    settings = LossSettings(clip=0.5, beta=0.04, weight="step" if key == "cj" else "token")
    for advantage, suffix in ((2.5 / 3, "0.833333"), (-0.5, "-0.5")):
        scores = scores_of(made, plan, advantage)
        loss, _ = clipped_loss(scores, settings)
        assert close([float(loss)], [VECTORS[f"loss_{key}_A{suffix}"]])
    assert scores.ref_K is not None
    assert close(by_position(plan, (scores.now_K - scores.old_K).exp()), VECTORS[f"rho_{key}"])
    assert close(by_position(plan, k3(scores.now_K, scores.ref_K)), VECTORS[f"k3_{key}"])


def test_clipping_and_the_ratio_of_an_answer_are_those_of_the_vectors() -> None:
    made, plan = planned("one-pass")
    far = scores_of(made, plan, 2.5 / 3, TableModel(1.2))
    assert close(by_position(plan, (far.now_K - far.old_K).exp()), VECTORS["clip02_far"]["rho"])
    loss, figures = clipped_loss(far, LossSettings(clip=0.2, beta=0))
    assert close([float(loss)], [VECTORS["clip02_far"]["loss"]])
    assert figures["clip share"] == pytest.approx(1 / 3)
    near = scores_of(made, plan, 1.0)
    loss, figures = clipped_loss(near, LossSettings(ratio="sequence", beta=0))
    assert close([-float(loss), figures["ratio"]], [VECTORS["gspo_ratio_one_pass"]] * 2)


def test_each_side_is_clipped_by_itself() -> None:
    zeros, steps = torch.zeros(1), torch.zeros(1, dtype=torch.long)
    for advantage, ratio, wanted in ((1.0, 2.0, 1.3), (1.0, 0.5, 0.5), (-1.0, 0.5, -0.8), (-1.0, 2.0, -2.0)):
        scores = Scores(torch.tensor([math.log(ratio)]), zeros, None, steps, steps, torch.tensor([advantage]))
        loss, _ = clipped_loss(scores, LossSettings(clip=0.2, clip_high=0.3, beta=0))
        assert -float(loss) == pytest.approx(wanted)


NAMES: dict[AdvantageName, str] = {
    "leave-one-out": "loo", "centred": "centred", "std": "std_unbiased+1e-4", "z-score": "zscore_population"
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_advantages_are_those_of_the_vectors(name: AdvantageName) -> None:
    known_rewards = VECTORS["advantages"]["r"]
    assert close(advantages(known_rewards, name), VECTORS["advantages"][NAMES[name]])
    assert sum(advantages(known_rewards, name)) == pytest.approx(0)
    assert advantages([0.5] * 4, name) == [0.0] * 4
    with_none = advantages([1, None, 0, 0.5, 0], name)
    assert with_none[1] == 0 and close(
        [each for at, each in enumerate(with_none) if at != 1], advantages(known_rewards, name)
    )
    with pytest.raises(ValueError, match="at least two"):
        advantages([1.0], name)


def test_leave_one_out_is_the_centred_one_by_g_over_g_minus_1() -> None:
    rewards = [0.3, 0.9, -1.0, 0.0, 0.25]
    for one, other in zip(advantages(rewards, "leave-one-out"), advantages(rewards, "centred"), strict=True):
        assert one == pytest.approx(other * 5 / 4)


def bound(model: TableModel, answer: Sequence[int] = ANSWER) -> float:
    """-NELBO by subsets: t integrates to a Beta function for each mask."""
    total, size = 0.0, len(answer)
    for count in range(1, size + 1):
        for masked in itertools.combinations(range(size), count):
            row = [PROMPT, *(MASK if k in masked else answer[k] for k in range(size))]
            beta = math.gamma(count) * math.gamma(size - count + 1) / math.gamma(size + 1)
            logp = model.logp(row)
            total += beta * sum(float(logp[k, answer[k]]) for k in masked)
    return total


def test_the_bound_is_that_of_the_vectors_by_subsets_and_by_orders() -> None:
    assert close([bound(THETA)], [VECTORS["elbo_theta"]])
    made = make("trajectory")
    orders = [
        THETA.scores(made, made.plan(episode(order=[[k] for k in order]), generator(0))).sum()
        for order in itertools.permutations(range(3))
    ]
    assert close([float(sum(orders)) / 6], [VECTORS["elbo_by_orders"]])


def coupled_mean(low: float, high: float, model: TableModel = THETA, points: int = 8) -> Tensor:
    """Mean of the coupled scores (without the full pass) over masks, exactly, and over times by quadrature."""
    made = make("coupled", full=False)
    nodes, weights = leggauss(points)
    total = torch.zeros(3, dtype=torch.float64)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        time = low + (high - low) * (node + 1) / 2
        for count in range(4):
            for masked in itertools.combinations((1, 2, 3), count):
                odds = time**count * (1 - time) ** (3 - count)
                plan = coupled_plan(episode(), masked, time, full=False)
                total += weight / 2 * odds * model.scores(made, plan)
    return total


def test_the_mean_of_coupled_scores_is_the_bound_only_where_times_are_from_0_to_1() -> None:
    assert close([float(coupled_mean(0, 1).sum())], [VECTORS["coupled_pair_mean"]])
    assert close([float(coupled_mean(0, 1).sum())], [bound(THETA)])
    assert close([float(coupled_mean(0.2, 0.8).sum())], [VECTORS["coupled_pair_mean_t_0.2_0.8"]])


def test_the_mean_of_coupled_scores_at_one_time_is_that_of_the_vectors() -> None:
    """With the full pass, half of it; over all masks at t = 0.4."""
    made, total = make("coupled"), 0.0
    for count in range(4):
        for masked in itertools.combinations((1, 2, 3), count):
            plan = coupled_plan(episode(), masked, 0.4)
            total += 0.4**count * 0.6 ** (3 - count) * float(THETA.scores(made, plan).sum())
    assert close([total], [VECTORS["coupled_score_mean_t0.4"]])


def test_complementary_scores_of_a_token_have_the_covariance_of_disjoint_supports() -> None:
    time, made = 0.35, make("coupled", full=False)
    first, second, both = (torch.zeros(3, dtype=torch.float64) for _ in range(3))
    for count in range(4):
        for masked in itertools.combinations((1, 2, 3), count):
            odds = time**count * (1 - time) ** (3 - count)
            plan = coupled_plan(episode(), masked, time, full=False)
            parts = []
            for hidden in ({*masked}, {1, 2, 3} - {*masked}):
                mine = [
                    view for view in plan.views
                    if {at for at in (1, 2, 3) if view.row[at] == MASK} == hidden
                ]  # fmt: skip
                part = torch.zeros(3, dtype=torch.float64)
                for view in mine:
                    logp = THETA.logp(view.row)
                    for place, id, share in zip(view.positions, view.ids, view.shares, strict=True):
                        part[place - 1] += share * logp[place - 1, id]
                parts.append(part)
            first, second = first + odds * parts[0], second + odds * parts[1]
            both = both + odds * parts[0] * parts[1]
            assert torch.allclose(parts[0] + parts[1], THETA.scores(made, plan))
    covariance = both - first * second
    assert torch.allclose(covariance, -first * second) and bool((covariance <= 0).all())


@pytest.mark.parametrize("low", [0.0, 0.2, 1.0])
def test_a_mask_and_its_complement_are_the_whole_answer(low: float) -> None:
    made = make("coupled", low=low, high=max(low, {0.0: 0.0, 0.2: 0.8, 1.0: 1.0}[low]))
    for seed in range(50):
        plan = made.plan(episode(), generator(seed))
        *halves, full = plan.views
        masked = [{at for at in (1, 2, 3) if view.row[at] == MASK} for view in halves]
        assert set().union(*masked) == {1, 2, 3} and sum(map(len, masked)) == 3
        assert {at for at in (1, 2, 3) if full.row[at] == MASK} == {1, 2, 3}
        scored = [place for view in halves for place in view.positions]
        assert sorted(scored) == [1, 2, 3] and all(view.row[0] == PROMPT for view in plan.views)
        assert all(math.isfinite(share) for view in plan.views for share in view.shares)


def all_answers() -> list[tuple[int, ...]]:
    return list(itertools.product(range(4), repeat=3))


def reward(answer: Sequence[int]) -> float:
    return float(answer[0] == 2) + 0.5 * float(answer[2] == 3)


ORDER = [[1], [0], [2]]


def surrogate_gradient(plans: Callable[[Sequence[int]], Sequence[tuple[float, Estimator, Plan]]]) -> float:
    """d/db[0][2] of the mean over answers, drawn by the policy in a fixed order, of reward times score."""
    model, still = TableModel(0.1, grad=True), TableModel(0.1)
    trajectory, total = make("trajectory"), torch.zeros((), dtype=torch.float64)
    mean = objective(0.1)[0]
    for answer in all_answers():
        walk = trajectory.plan(episode(answer, ORDER), generator(0))
        odds = float(still.scores(trajectory, walk).sum().exp())
        for share, made, plan in plans(answer):
            scores = model.scores(made, plan)
            steps = torch.zeros(len(scores), dtype=torch.long)
            # At old = now the clipped loss has the gradient of the score itself; three tokens weigh a third each.
            advantage = torch.tensor([(reward(answer) - mean) * 3], dtype=torch.float64)
            held = Scores(scores, scores.detach(), None, steps, steps, advantage)
            loss, _ = clipped_loss(held, LossSettings(beta=0))
            total = total - odds * share * loss
    total.backward()
    assert model.b.grad is not None
    return float(model.b.grad[0, 2])


def objective(delta: float, nudge: float = 0.0) -> tuple[float, float]:
    """Mean reward and all probability of the policy that writes in `ORDER`."""
    model, trajectory = TableModel(delta), make("trajectory")
    model.b[0, 2] += nudge
    mean = mass = 0.0
    for answer in all_answers():
        walk = trajectory.plan(episode(answer, ORDER), generator(0))
        odds = float(model.scores(trajectory, walk).sum().exp())
        mean, mass = mean + odds * reward(answer), mass + odds
    return mean, mass


def test_only_the_trajectory_estimator_is_the_policy_gradient() -> None:
    mean, mass = objective(0.1)
    assert close([mean, mass], [VECTORS["J_theta_order_1_0_2"], VECTORS["Z"]])
    finite = (objective(0.1, 1e-5)[0] - objective(0.1, -1e-5)[0]) / 2e-5
    assert close([finite], [VECTORS["dJ_finite_difference"]])

    def walked(answer: Sequence[int]) -> list[tuple[float, Estimator, Plan]]:
        made = make("trajectory")
        return [(1.0, made, made.plan(episode(answer, ORDER), generator(0)))]

    def at_once(answer: Sequence[int]) -> list[tuple[float, Estimator, Plan]]:
        made = make("one-pass")
        return [(1.0, made, made.plan(episode(answer, ORDER), generator(0)))]

    def coupled(answer: Sequence[int]) -> list[tuple[float, Estimator, Plan]]:
        made, out = make("coupled"), []
        nodes, weights = leggauss(8)
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            time = 0.2 + 0.6 * (node + 1) / 2
            for count in range(4):
                for masked in itertools.combinations((1, 2, 3), count):
                    odds = weight / 2 * time**count * (1 - time) ** (3 - count)
                    out.append((odds, made, coupled_plan(episode(answer, ORDER), masked, time)))
        return out

    assert close([surrogate_gradient(walked)], [VECTORS["dJ_trajectory_score"]])
    assert close([surrogate_gradient(at_once)], [VECTORS["dJ_one_pass_surrogate"]])
    assert close([surrogate_gradient(coupled)], [VECTORS["dJ_coupled_surrogate"]])


def test_a_trajectory_of_one_pass_is_one_pass() -> None:
    at_once = episode(order=[[0, 1, 2]])
    found = []
    for name in ("trajectory", "one-pass"):
        made = make(name)
        plan = made.plan(at_once, generator(0))
        losses = [
            float(clipped_loss(scores_of(made, plan, 1.5), LossSettings(weight=weight, beta=0.04))[0])
            for weight in ("step", "token", "row")
        ]
        found.append(losses)
    assert found[0] == found[1] and found[0][0] == pytest.approx(found[0][1])


def test_passes_that_are_merged_are_asked_in_the_first_state() -> None:
    long = episode(order=[[1], [0], [2]])
    made = make("trajectory", shrink=2)
    plan = made.plan(long, generator(0))
    assert [view.row for view in plan.views] == [(PROMPT, MASK, MASK, MASK), (PROMPT, 2, 0, MASK)]
    assert [view.positions for view in plan.views] == [(2, 1), (3,)] and plan.steps == (0, 0, 1)
    whole = make("trajectory", shrink=3).plan(long, generator(0))
    one = make("one-pass")
    assert close(
        by_position(whole, THETA.scores(made, whole)),
        by_position(one.plan(long, generator(0)), THETA.scores(one, one.plan(long, generator(0)))),
    )


def test_weights_of_steps_tokens_and_rows() -> None:
    rows, steps = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 0, 0, 0])
    scores = Scores(torch.zeros(6), torch.zeros(6), None, rows, steps, torch.tensor([1.0, -1.0, 0.0]))

    def weights(name: Any) -> list[float]:
        from cm3kit.training.rl.losses import token_weights

        return [pytest.approx(each) for each in token_weights(scores, LossSettings(weight=name)).tolist()]

    # The answer whose advantage is 0 counts for nothing.
    assert weights("token") == [0.2, 0.2, 0.2, 0.2, 0.2, 0.0]
    assert weights("step") == [1 / 6, 1 / 4, 1 / 4, 1 / 6, 1 / 6, 0.0]
    assert weights("row") == [1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4, 0.0]


def test_prompts_may_be_masked_too_and_their_first_id_stays() -> None:
    long = Episode((1, 2, 3, MASK, 2), (Write(0, (3,), (1,), (True,)),), MASK)
    made = make("one-pass", prompt_masked=0.5)
    rows = {made.plan(long, generator(seed)).views[0].row for seed in range(40)}
    assert len(rows) == 8 and all(row[0] == 1 and row[3] == MASK for row in rows)


def test_settings_are_refused_where_they_make_no_sense() -> None:
    for wrong in (
        {"name": "coupled", "low": 0.9, "high": 0.1},
        {"name": "trajectory", "shrink": 0},
        {"name": "one-pass", "x": 1},
    ):
        with pytest.raises(ValidationError):
            read_settings(wrong)
    assert isinstance(read_settings("causal"), EstimatorSettings)


class Bounds(Estimator):
    """SPG's upper bound over all masks of an answer: a score that is no sum of log-probabilities."""

    beta = 1.5

    def plan(self, episode: Episode, rng: Any) -> Plan:
        views: list[View] = []
        for count in (1, 2, 3):
            for masked in itertools.combinations(episode.open, count):
                asked = {
                    place: (token, id, 1.0)
                    for token, (place, id, _) in enumerate(episode.answer())
                    if place in masked
                }
                views += masked_views(episode, episode.final, masked, asked)
        return Plan(tuple(views), (0, 0, 0))

    def combine(self, plans: Sequence[Plan], logp_N: Tensor) -> Tensor:
        (plan,) = plans
        mean_K = torch.zeros(3, dtype=logp_N.dtype)
        number = 0
        for view in plan.views:
            count = len(view.ids)
            # The share of times t at which this mask is drawn, over t: a Beta function.
            share = math.gamma(count) * math.gamma(4 - count) / math.gamma(4)
            for token in view.tokens:
                odds_K = torch.nn.functional.one_hot(torch.tensor(token), 3) * share
                mean_K = mean_K + odds_K * (self.beta * logp_N[number]).exp()
                number += 1
        return mean_K.log() / self.beta


class Weighted(Estimator):
    """wd1's loss, which has no ratio: softmax weights of advantages, positive less negative."""

    def plan(self, episode: Episode, rng: Any) -> Plan:
        return make("one-pass").plan(episode, rng)

    def loss(self, scores: Scores, settings: LossSettings) -> tuple[Tensor, dict[str, float]]:
        net_R = scores.advantages_R.softmax(0) - (-scores.advantages_R).softmax(0)
        return -(net_R[scores.rows_K] * scores.now_K).sum(), {}


def test_estimators_to_come_are_one_class_each() -> None:
    bounds = Bounds(EstimatorSettings(name="bounds"))
    for beta in (1.0, 1.5):
        bounds.beta = beta
        found = THETA.scores(bounds, bounds.plan(episode(), generator(0))).sum()
        assert close([float(found)], [VECTORS[f"eubo_theta_beta{beta}"]])
    centred_R = torch.tensor(advantages(VECTORS["advantages"]["r"], "centred"), dtype=torch.float64)
    scores_K = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    rows = torch.arange(4)
    loss, _ = Weighted(None).loss(
        Scores(scores_K, scores_K.detach(), None, rows, rows, centred_R), LossSettings()
    )
    loss.backward()
    assert scores_K.grad is not None and close((-scores_K.grad).tolist(), VECTORS["wd1_weights"]["net"])
