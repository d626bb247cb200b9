"""Advantages of a group's rewards, and the clipped objective that they weigh.

GRPO (arXiv:2402.03300, sec. 4.1) with what its neighbours change: which mean is taken off, how far a ratio may go,
whose ratio it is, how tokens weigh, and what the policy is held to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cm3kit.config import Settings

AdvantageName = Literal["centred", "leave-one-out", "z-score", "std"]
FAR = 20.0  # nats by which a score may differ before its exponential is cut, so that no ratio is infinite


class LossSettings(Settings):
    """How scores and rewards become a loss.

    Attributes:
        advantage: reward minus the mean of the group (`centred`; d1, CJ-GRPO), minus that of the others
            (`leave-one-out`; DiffuCoder), divided by the population's standard deviation (`z-score`; TraceRL), or
            centred and divided by the unbiased one + 1e-4 (`std`; GRPO as it was published).
        clip: how far below 1 a ratio counts, and above unless `clip_high` says otherwise.
        ratio: of each token, or of the whole answer (exp of the mean difference; GSPO, arXiv:2507.18071), whose `clip`
            has to be far smaller.
        weight: every token of the batch alike (`token`), every pass alike and in it every token (`step`; CJ-GRPO), or
            every answer alike (`row`; TraceRL).
        beta: weight of k3 = e^d - d - 1 with d = log p_ref - log p, an unbiased estimate of KL(p, p_ref).
        kl: the policy is held to the weights that training began with (`start`), or to those of the rollout.
        sync_every: updates after which the reference becomes the policy of then; 0 is never.
    """

    advantage: AdvantageName = "leave-one-out"
    clip: float = Field(0.5, gt=0)
    clip_high: float | None = Field(None, gt=0)
    ratio: Literal["token", "sequence"] = "token"
    weight: Literal["token", "step", "row"] = "token"
    beta: float = Field(0.01, ge=0)
    kl: Literal["start", "rollout"] = "start"
    sync_every: int = Field(0, ge=0)

    @property
    def needs_reference(self) -> bool:
        """Whether scores of other weights than the policy's are wanted."""
        return self.beta > 0 and self.kl == "start"


def advantages(rewards: Sequence[float | None], name: AdvantageName) -> list[float]:
    """Each reward of a group relative to the others; 0 for one that is None, or alone.

    Raises:
        ValueError: the group has fewer than two members.
    """
    if len(rewards) < 2:
        raise ValueError(
            f"A group of {len(rewards)} has no other answer to compare with; at least two are needed."
        )
    known = [each for each in rewards if each is not None]
    if len(known) < 2 or max(known) == min(known):
        return [0.0] * len(rewards)
    given_G = torch.tensor(known, dtype=torch.float64)
    centred_G = given_G - given_G.mean()
    if name == "leave-one-out":
        centred_G = centred_G * len(known) / (len(known) - 1)
    elif name == "z-score":
        centred_G = centred_G / given_G.std(correction=0)
    elif name == "std":
        centred_G = centred_G / (given_G.std() + 1e-4)
    found = iter(centred_G.tolist())
    return [0.0 if each is None else next(found) for each in rewards]


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of all K tokens of a batch, and what they are compared with.

    Attributes:
        now_K: of the policy; `old_K` of that which wrote them, `ref_K` of the reference (None holds it to nothing).
        rows_K: number of the answer that each token is of, and `steps_K` of the pass that wrote it.
        advantages_R: of each answer; answers with 0 count for nothing.
    """

    now_K: Tensor
    old_K: Tensor
    ref_K: Tensor | None
    rows_K: Tensor
    steps_K: Tensor
    advantages_R: Tensor


def token_weights(scores: Scores, settings: LossSettings) -> Tensor:
    """Weight of each token (K,); those of answers that count sum to 1, or with `step` to the share of its passes."""
    counted_K = (scores.advantages_R != 0)[scores.rows_K].to(scores.old_K.dtype)
    if settings.weight == "token":
        return counted_K / counted_K.sum().clamp_min(1)
    group_K = scores.steps_K if settings.weight == "step" else scores.rows_K
    size_N = counted_K.new_zeros(int(group_K.max()) + 1 if len(group_K) else 0)
    size_N = size_N.index_add(0, group_K, counted_K)
    return counted_K / (size_N.clamp_min(1)[group_K] * (size_N > 0).sum().clamp_min(1))


def clipped_loss(scores: Scores, settings: LossSettings) -> tuple[Tensor, dict[str, float]]:
    """The scalar -min(rA, clip(r)A) + beta k3, weighed over all tokens, and figures of it.

    With the ratio of an answer its tokens share one, and weigh together what they would weigh apart.
    """
    weights_K = token_weights(scores, settings)
    moved_K = scores.now_K - scores.old_K
    if settings.ratio == "sequence":
        moved_K = _row_means(moved_K, scores)
    ratio_K = moved_K.clamp(max=FAR).exp()
    low, high = 1 - settings.clip, 1 + (settings.clip if settings.clip_high is None else settings.clip_high)
    advantage_K = scores.advantages_R[scores.rows_K]
    plain_K, cut_K = ratio_K * advantage_K, ratio_K.clamp(low, high) * advantage_K
    loss = -(weights_K * torch.minimum(plain_K, cut_K)).sum()
    counted_K = weights_K > 0
    figures = {"clip share": _mean((cut_K < plain_K)[counted_K]), "ratio": _mean(ratio_K[counted_K])}
    reference_K = scores.old_K if settings.kl == "rollout" else scores.ref_K
    if settings.beta and reference_K is not None:
        k3_K = k3(scores.now_K, reference_K)
        loss = loss + settings.beta * (weights_K * k3_K).sum()
        figures["kl"] = _mean(k3_K[counted_K])
    return loss, figures


def k3(now_K: Tensor, reference_K: Tensor) -> Tensor:
    """e^d - d - 1 with d = log p_ref - log p: never negative, and KL(p, p_ref) on average over p."""
    away_K = (reference_K - now_K).clamp(max=FAR)
    return torch.expm1(away_K) - away_K


def _row_means(values_K: Tensor, scores: Scores) -> Tensor:
    """The mean over its answer at each token."""
    size_R = values_K.new_zeros(len(scores.advantages_R))
    count_R = size_R.index_add(0, scores.rows_K, torch.ones_like(values_K))
    return (size_R.index_add(0, scores.rows_K, values_K) / count_R.clamp_min(1))[scores.rows_K]


def _mean(values_K: Tensor) -> float:
    return float(values_K.detach().double().mean()) if len(values_K) else 0.0
