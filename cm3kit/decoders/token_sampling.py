"""Draw one id per row by inverting the cumulative distribution at a uniform number given for the row.

Top-p is nucleus sampling (Holtzman et al., arXiv:1904.09751, sec. 3.1), after top-k.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# Most nuclei are this small, and the best of a row are found much faster than its order.
HEAD = 256


@dataclass(frozen=True, slots=True)
class Routes:
    """What rows may need, as far as their settings tell.

    Attributes:
        uncut: some row draws from all of its ids.
        cut: some row draws from its best ids alone.
        beyond: these may be more than `HEAD`; None to look whether they are, which reads from the device.
    """

    uncut: bool
    cut: bool
    beyond: bool | None

    @classmethod
    def of(cls, settings: Iterable[tuple[float, int, float]], look: bool = False) -> Routes:
        """Of rows with these temperatures, top-k and top-p.

        Args:
            look: whether reading from the device is cheap.
        """
        drawn = {(k, p) for temperature, k, p in settings if temperature}
        cut = drawn - {(0, 1.0)}
        beyond = any(not 0 < k <= HEAD and p > 0 for k, p in cut)
        return cls(cut != drawn, bool(cut), None if look and beyond else beyond)


def penalize(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits with those of ids seen before made smaller: divided where positive, multiplied elsewhere."""
    softer_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, softer_BV, logits_BV)


def draw(
    logits_BV: Tensor,
    uniforms_B: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    routes: Routes | None = None,
) -> Tensor:
    """Ids (B,).

    Args:
        logits_BV: -inf where an id may not be drawn, finite at least once a row.
        uniforms_B: fp64 numbers in [0, 1).
        temperature_B: fp64; 0 takes the best id.
        top_k_B: int64; 0 cuts nothing.
        top_p_B: fp64; 1 cuts nothing.
        routes: of these settings, which are read where it is not given; the ids are the same.
    """
    if routes is None:
        settings = zip(temperature_B.tolist(), top_k_B.tolist(), top_p_B.tolist(), strict=True)
        routes = Routes.of(settings, look=True)
    drawn_B, short_B, mass_BV = _draw_best(logits_BV, uniforms_B, temperature_B, top_k_B, top_p_B, routes)
    if short_B is None:
        return drawn_B
    # Only rows that need their whole order get it: it breaks ties in its own way, and no row may change another.
    limit_B1 = _limits(top_k_B, mass_BV.shape[1])
    if routes.beyond:
        sorted_BV, ids_BV = mass_BV.sort(dim=-1, descending=True, stable=True)
        other_B = _draw_sorted(mass_BV, sorted_BV, ids_BV, uniforms_B, limit_B1, top_p_B)
        return torch.where(short_B, other_B, drawn_B)
    if bool(short_B.any()):
        mass_WV = mass_BV[short_B]
        sorted_WV, ids_WV = mass_WV.sort(dim=-1, descending=True, stable=True)
        drawn_B[short_B] = _draw_sorted(
            mass_WV, sorted_WV, ids_WV, uniforms_B[short_B], limit_B1[short_B], top_p_B[short_B]
        )
    return drawn_B


def draw_ahead(
    logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor]:
    """The ids (B,) of `draw` for rows of one setting, without reading anything back from their device.

    Returns:
        ids, and bool (B,) for which rows `draw` itself must be asked: they may draw more than the `HEAD` best.
    """
    rows, device = len(logits_BV), logits_BV.device
    temperature_B, top_p_B = (
        torch.full((rows,), each, dtype=torch.float64, device=device) for each in (temperature, top_p)
    )
    top_k_B, routes = torch.full((rows,), top_k, device=device), Routes.of([(temperature, top_k, top_p)])
    drawn_B, short_B, _ = _draw_best(logits_BV, uniforms_B, temperature_B, top_k_B, top_p_B, routes)
    return drawn_B, torch.zeros_like(drawn_B, dtype=torch.bool) if short_B is None else short_B


def _draw_best(
    logits_BV: Tensor,
    uniforms_B: Tensor,
    temperature_B: Tensor,
    top_k_B: Tensor,
    top_p_B: Tensor,
    routes: Routes,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids (B,) by the `HEAD` best, for which rows these may be too few (None: for none), and exp(logits − max)."""
    best_B = logits_BV.argmax(-1)
    if not routes.uncut and not routes.cut:
        return best_B, None, logits_BV
    # Which branch a row takes depends on its own settings alone: the two order the ids differently.
    greedy_B, whole_B = temperature_B == 0, (top_k_B == 0) & (top_p_B == 1)
    heat_B1 = temperature_B.masked_fill(greedy_B, 1.0)[:, None]
    scaled_BV = logits_BV.double() / heat_B1
    mass_BV = scaled_BV.sub_(scaled_BV.amax(-1, keepdim=True)).exp_()
    drawn_B, short_B, vocab = best_B, None, mass_BV.shape[1]
    if routes.uncut:
        drawn_B = torch.where(whole_B, _invert(mass_BV.cumsum(-1), uniforms_B), drawn_B)
    if routes.cut:
        limit_B1 = _limits(top_k_B, vocab)
        sorted_BR, ids_BR = mass_BV.topk(min(HEAD, vocab), dim=-1)
        cut_B = _draw_sorted(mass_BV, sorted_BR, ids_BR, uniforms_B, limit_B1, top_p_B)
        drawn_B = torch.where(whole_B, drawn_B, cut_B)
        if vocab > HEAD and routes.beyond is not False:
            short_B = ~(_suffices(mass_BV, sorted_BR, limit_B1, top_p_B) | greedy_B)
    return torch.where(greedy_B, best_B, drawn_B), short_B, mass_BV


def _limits(top_k_B: Tensor, vocab: int) -> Tensor:
    return top_k_B.masked_fill(top_k_B == 0, vocab)[:, None]


def _draw_sorted(
    mass_BV: Tensor, sorted_BR: Tensor, ids_BR: Tensor, uniforms_B: Tensor, limit_B1: Tensor, top_p_B: Tensor
) -> Tensor:
    rank_R = torch.arange(sorted_BR.shape[1], device=mass_BV.device)
    top_BR = sorted_BR.masked_fill(rank_R >= limit_B1, 0.0)
    before_BR = top_BR.cumsum(-1) - top_BR
    total_B1 = _total(mass_BV, top_BR, limit_B1)
    kept_BR = top_BR.masked_fill(~((before_BR < top_p_B[:, None] * total_B1) | (rank_R == 0)), 0.0)
    return ids_BR.gather(-1, _invert(kept_BR.cumsum(-1), uniforms_B)[:, None])[:, 0]


def _total(mass_BV: Tensor, top_BR: Tensor, limit_B1: Tensor) -> Tensor:
    # The nucleus is a share of what top-k left; without top-k that is the whole row, beyond the head too.
    whole_B1 = mass_BV.sum(-1, keepdim=True)
    return torch.where(limit_B1 < mass_BV.shape[1], top_BR.sum(-1, keepdim=True), whole_B1)


def _suffices(mass_BV: Tensor, sorted_BR: Tensor, limit_B1: Tensor, top_p_B: Tensor) -> Tensor:
    """Whether all that a row may draw is in its head, or nothing is cut and the answer is not used."""
    inside_B = sorted_BR.sum(-1) >= top_p_B * mass_BV.sum(-1)
    empty_B = sorted_BR[:, -1] == 0
    limit_B = limit_B1[:, 0]
    uncut_B = (limit_B == mass_BV.shape[1]) & ((top_p_B == 1) | inside_B)
    return (limit_B <= sorted_BR.shape[1]) | uncut_B | empty_B


def _invert(cumulative_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    total_B = cumulative_BV[:, -1]
    # Rounding may lift u * total onto the total itself, where no id with mass would be left.
    target_B = torch.minimum(uniforms_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    # Of a row that is no number any id is found, and never one beyond the last: an index that a device could not use.
    found_B1 = torch.searchsorted(cumulative_BV, target_B[:, None], right=True)
    return found_B1[:, 0].clamp(max=cumulative_BV.shape[1] - 1)
