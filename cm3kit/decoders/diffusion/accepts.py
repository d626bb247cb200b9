"""Accept rules: which of the scored slots are written now.

A rule accepts at least the planned number of slots, and at least one. Slots are taken best score first, and
among equal scores from left to right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.axes import accept, number


@accept("top")
def top(score_M: Tensor, planned: int) -> Tensor:
    """The `planned` best slots."""
    return _first(score_M, planned)


@accept("threshold")
def threshold(score_M: Tensor, planned: int, *, tau: float = 0.9) -> Tensor:
    """Every slot whose score is `tau` or more, or the `planned` best if these are more.

    Fast-dLLM (arXiv:2505.22618, sec. 3.3) with one planned slot per step; LLaDA2 and SDAR plan more.
    Above 1 only the planned number is accepted, at 0 everything.
    """
    return _first(score_M, max(planned, int((score_M >= number("tau", tau)).sum())))


@accept("factor")
def factor(score_M: Tensor, planned: int, *, f: float = 1.0) -> Tensor:
    """The n best, for the largest n such that the r-th best is at least 1 - f / (r + 1), r = 2..n.

    Fast-dLLM (arXiv:2505.22618, sec. 3.3 and theorem 1): the more slots at once, the higher the score each needs.
    """
    f = number("f", f, 0.0)
    best_M = score_M.sort(descending=True).values
    ranks_M = torch.arange(1, len(score_M) + 1, device=score_M.device)
    sure_M = (best_M >= 1 - f / (ranks_M + 1)) | (ranks_M == 1)
    return _first(score_M, max(planned, _leading(sure_M)))


@accept("entropy-bound")
def entropy_bound(score_M: Tensor, planned: int, *, bound: float = 0.1) -> Tensor:
    """The slots of highest score, while the entropies of those before each sum to at most `bound` nats.

    EB-Sampler (arXiv:2505.24857): the sum without its largest term bounds what the slots tell of
    each other. Meant for scores of the order `entropy`, which are exp(-H).
    """
    bound = number("bound", bound, 0.0)
    entropy_M = -score_M.clamp(0.0, 1.0).log().sort(descending=True).values
    before_M = entropy_M.cumsum(0).roll(1)
    before_M[:1] = 0.0
    return _first(score_M, max(planned, _leading(before_M <= bound)))


def _first(score_M: Tensor, count: int) -> Tensor:
    order_M = score_M.sort(descending=True, stable=True).indices
    accepted_M = torch.zeros_like(score_M, dtype=torch.bool)
    accepted_M[order_M[: max(count, 1)]] = True
    return accepted_M


def _leading(true_M: Tensor) -> int:
    """Length of the run of True at the start."""
    return int(true_M.long().cumprod(0).sum())
