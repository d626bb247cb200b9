"""Ids for the slots of a pass, each drawn in the way of what may stand there; nothing is read back from the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cm3kit.decoders.settings import Sampling
from cm3kit.decoders.token_sampling import draw_ahead
from cm3kit.decoders.transfer import upload

Way = tuple[float, int, float]
"""Temperature, top-k and top-p."""
Ways = tuple[Tensor, Tensor, Tensor]
"""The same of each slot, (M,)."""


def way_of(sampling: Sampling) -> Way:
    """The numbers of a setting."""
    return sampling.temperature, sampling.top_k, sampling.top_p


def ways_of(ways: Sequence[Way], device: torch.device) -> Ways:
    """Those of each slot as tensors."""
    heat_M, top_k_M, top_p_M = zip(*ways, strict=True)
    return (
        upload(heat_M, device, torch.float64),
        upload(top_k_M, device),
        upload(top_p_M, device, torch.float64),
    )


def draw_each(masked_MV: Tensor, uniforms_M: Tensor, ways: Sequence[Way]) -> tuple[Tensor, Tensor]:
    """A pick at each slot, and bool (M,) where `draw` must be asked for it instead, as in `draw_ahead`.

    Slots of one way are drawn together, as they take the same steps.
    """
    groups: dict[Way, list[int]] = {}
    for at, way in enumerate(ways):
        groups.setdefault(way, []).append(at)
    if len(groups) == 1:
        return draw_ahead(masked_MV, uniforms_M, *ways[0])
    found = []
    for way, group in groups.items():
        at_K = upload(group, masked_MV.device)
        found.append(draw_ahead(masked_MV.index_select(0, at_K), uniforms_M.index_select(0, at_K), *way))
    order = [at for group in groups.values() for at in group]
    back_M = upload(sorted(range(len(order)), key=order.__getitem__), masked_MV.device)
    picks, short = zip(*found, strict=True)
    return torch.cat(picks).index_select(0, back_M), torch.cat(short).index_select(0, back_M)


def drawn_from(masked_MV: Tensor, heat_M: Tensor, top_k_M: Tensor, top_p_M: Tensor) -> Tensor:
    """Log-probabilities (M, V) of the distribution that `draw` draws from; temperature 0 counts as 1.

    At low temperatures many of them round to 0, and an order that reads them becomes left to right.
    """
    heat_M1 = torch.where(heat_M == 0, 1.0, heat_M)[:, None].float()
    logp_MV, ids_MV = (masked_MV / heat_M1).log_softmax(-1).sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(logp_MV.shape[1], device=masked_MV.device)
    limit_M1 = torch.where(top_k_M == 0, logp_MV.shape[1], top_k_M)[:, None]
    top_MV = torch.where(rank_V < limit_M1, logp_MV, -torch.inf).double().softmax(-1)
    before_MV = top_MV.cumsum(-1) - top_MV
    kept_MV = (rank_V < limit_M1) & ((before_MV < top_p_M[:, None]) | (rank_V == 0))
    cut_MV = torch.where(kept_MV, logp_MV, -torch.inf).log_softmax(-1)
    return torch.empty_like(cut_MV).scatter_(-1, ids_MV, cut_MV)
