"""Orders: which of the open slots go first, as a score of each; larger goes first.

A score reads one row at one step and never changes what would be written. All scores lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Generator, Tensor

from cm3kit.decoders.diffusion.axes import number, one_of, order
from cm3kit.decoders.diffusion.scores import Order, Scores
from cm3kit.decoders.diffusion.settings import Eoser


@order("probability")
def probability(scores: Scores, *, alg_temp: float = 0.0) -> Tensor:
    """Probability of each slot's pick (MaskGIT, arXiv:2202.04200; `low_confidence` of LLaDA).

    Args:
        scores: the open slots.
        alg_temp: above 0 the best k scores are a draw without replacement in proportion to
            softmax(confidence / alg_temp) (Dream); 0 takes the confidence as it is. Here and below.
    """
    p_M = scores.picked_M.double().exp()
    return _jitter(p_M, alg_temp, scores.rng) if alg_temp else p_M


@order("margin")
def margin(scores: Scores, *, alg_temp: float = 0.0) -> Tensor:
    """Best probability minus second best (arXiv:2502.06768, sec. 4; `topk_margin` of Dream)."""
    best_MR = scores.of(_two_best).double().exp()
    margin_M = best_MR[:, 0] - best_MR[:, 1] if best_MR.shape[1] == 2 else best_MR[:, 0]
    return _jitter(margin_M, alg_temp, scores.rng) if alg_temp else margin_M


@order("entropy")
def entropy(scores: Scores, *, alg_temp: float = 0.0) -> Tensor:
    """exp(-H) of each slot's distribution: 1 where one id is certain, 1/V where all are alike.

    Ranks as -H does (`entropy` of Dream), but is positive, so that a factor below 1 always ranks lower.
    With `alg_temp`, the confidence is -H.
    """
    neg_entropy_M = scores.of(_neg_entropy)
    return _jitter(neg_entropy_M, alg_temp, scores.rng) if alg_temp else neg_entropy_M.exp()


@order("random")
def random(scores: Scores) -> Tensor:
    """Uniform noise: every order of the slots is equally likely."""
    return _uniforms(scores.slots_M, scores.rng)


@order("left-to-right")
def left_to_right(scores: Scores) -> Tensor:
    """The leftmost slot first, whatever the model says: 1, 1 - 1/M, … 1/M."""
    count = len(scores.slots_M)
    ranks_M = torch.arange(count, dtype=torch.float64, device=scores.slots_M.device)
    return 1.0 - ranks_M / max(count, 1)


@order("joint")
def joint(scores: Scores) -> Tensor:
    """The leftmost slot first, and a later one by the probability that all picks up to it stand: 1, p1 p2, p1 p2 p3 …

    With the accept rule `threshold` a pass writes from left to right while the joint probability stays high, as
    adaptive parallel decoding does (arXiv:2506.00413) with a second model as verifier.
    """
    p_M = scores.picked_M.double().exp().cumprod(0)
    p_M[:1] = 1.0
    return p_M


@order("maskgit")
def maskgit(scores: Scores, *, tau: float = 4.5, ratio: Literal["next", "now"] = "next") -> Tensor:
    """exp(log p + τ (1 - r) G) of each pick, with Gumbel noise G that fades as more is written.

    Divided by the largest where that exceeds 1: noise would carry it past what a float holds.

    Args:
        scores: the open slots.
        tau: choice temperature: 4.5 in MaskGIT (arXiv:2202.04200), 10 in UniDisc (arXiv:2503.20853) and MeDiM.
        ratio: r at step s of S is (s + 1) / S, noise-free at the last step (MaskGIT), or s / S (`now`; UniDisc
            and MeDiM write it as the time t = 1 - r). S is what was asked for, also where the plan is shorter.
    """
    tau = number("tau", tau, 0.0)
    ahead = one_of("ratio", ratio, ("next", "now")) == "next"
    fade = max(0.0, 1.0 - (scores.step + ahead) / max(scores.steps, scores.asked))
    noise_M = _gumbel(scores.slots_M, scores.rng)
    return _scaled_exp(scores.picked_M.double() + tau * fade * noise_M)


def gamma(settings: Eoser, step: int, steps: int) -> float:
    """Factor of end ids at one step: γ of arXiv:2509.23924.

    `step` counts from 0 within the `steps` it is given with: both of the block, or both of the whole board.
    A step beyond the last counts as the last.
    """
    step = min(max(step, 0), steps - 1)
    if settings.schedule == "ascending":
        done = 2.0 ** (step + 1 - steps) - 2.0**-steps
    else:
        done = step / (steps - 1) if steps > 1 else 1.0
    return settings.least + (settings.most - settings.least) * done


def eoser(inner: Order, settings: Eoser, end_ids: Collection[int]) -> Order:
    """The order `inner`, with slots whose pick is an end id ranked lower (EOS early rejection).

    Only the rank changes: a slot that is accepted nevertheless gets its end id. As accept rules accept at least
    one slot, a row of end ids alone is written too.

    Args:
        inner: any order.
        settings: how much lower. In `hard` mode end ids come after all others at first, then rank as usual.
        end_ids: ids that end an answer; none leaves the order as it is.
    """
    if not end_ids:
        return inner
    ends = sorted(end_ids)

    def damped(scores: Scores) -> Tensor:
        score_M = inner(scores)
        ended_M = torch.isin(scores.picks_M, torch.tensor(ends, device=scores.picks_M.device))
        if settings.hard is not None:
            banned = scores.step < settings.hard * scores.steps
            return score_M.masked_fill(ended_M, -torch.inf) if banned else score_M
        factor = gamma(settings, scores.step, scores.steps)
        # Scores of a plug-in order may be negative, and a factor below 1 would then raise the rank.
        lower_M = torch.where(score_M < 0, score_M / factor if factor else -torch.inf, score_M * factor)
        return torch.where(ended_M, lower_M, score_M)

    return damped


def _two_best(logp_NV: Tensor, picks_N: Tensor) -> Tensor:
    return logp_NV.topk(min(2, logp_NV.shape[1]), dim=-1).values


def _neg_entropy(logp_NV: Tensor, picks_N: Tensor) -> Tensor:
    # An id of probability 0 adds nothing, though its logarithm is -inf.
    finite_NV = logp_NV.masked_fill(logp_NV == -torch.inf, 0.0)
    return (finite_NV * logp_NV.exp()).sum(-1, dtype=torch.float64).clamp(max=0.0)


def _jitter(confidence_M: Tensor, alg_temp: float, rng: Generator) -> Tensor:
    # The k largest of log-weights plus Gumbel noise are k draws without replacement (arXiv:1903.06059).
    alg_temp = number("alg_temp", alg_temp, 0.0)
    return _scaled_exp(confidence_M / alg_temp + _gumbel(confidence_M, rng))


def _scaled_exp(log_M: Tensor) -> Tensor:
    if not len(log_M):
        return log_M
    return (log_M - log_M.max().clamp(min=0.0)).exp()


def _uniforms(like_M: Tensor, rng: Generator) -> Tensor:
    return torch.rand(len(like_M), generator=rng, dtype=torch.float64, device=rng.device).to(like_M.device)


def _gumbel(like_M: Tensor, rng: Generator) -> Tensor:
    # -log(1 - u) is an Exp(1) number; it is 0 where u is, which has no logarithm.
    exponential_M = -torch.log1p(-_uniforms(like_M, rng))
    return -exponential_M.clamp(min=torch.finfo(torch.float64).tiny).log()
