"""Inputs and outputs of a step of a diffusers scheduler: candidate ids of a block of rows, and the ids after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import Generator, Tensor

from cm3kit.decoders.diffusion.drawing import drawn_from
from cm3kit.decoders.token_sampling import draw


@dataclass
class MaskedDiffusionSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """One step of a block of L places in B rows.

    Attributes:
        prev_sample: ids (B, L) after it.
        transfer_index: bool (B, L), where a mask was written over.
        editing_transfer_index: bool (B, L), where another id was.
        sampled_tokens: ids (B, L), the candidates; the present id where none was drawn.
        sampled_probs: fp32 (B, L), their probabilities; 0 where none was drawn.
        pred_logits: the logits (B, L, V) that came in.
    """

    prev_sample: Tensor
    transfer_index: Tensor
    editing_transfer_index: Tensor
    sampled_tokens: Tensor
    sampled_probs: Tensor
    pred_logits: Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """Picks at the N scored places of a block, row by row, on the CPU.

    Attributes:
        scored_BL: which places were scored.
        logp_NV: log-probabilities that confidence is read from.
        picks_N: an id for each.
    """

    scored_BL: Tensor
    logp_NV: Tensor
    picks_N: Tensor

    def of(self, row: int, slots_M: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (M, V) and picks (M,) at some of the scored places of a row."""
        before = int(self.scored_BL[:row].sum())
        at_M = before + (self.scored_BL[row].cumsum(0) - 1)[slots_M]
        return self.logp_NV[at_M], self.picks_N[at_M]

    def spread(self, sample_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Picks and their fp32 probabilities (B, L); the present id, with 0, where nothing was scored."""
        tokens_BL, probs_BL = sample_BL.clone(), torch.zeros(sample_BL.shape, device=sample_BL.device)
        scored_BL = self.scored_BL.to(sample_BL.device)
        tokens_BL[scored_BL] = self.picks_N.to(tokens_BL)
        probs_BL[scored_BL] = self.logp_NV.gather(-1, self.picks_N[:, None])[:, 0].exp().to(probs_BL)
        return tokens_BL, probs_BL


def draw_candidates(
    logits_BLV: Tensor,
    scored_BL: Tensor,
    mask: int,
    way: tuple[float, int, float],
    dice: Sequence[Generator],
    tempered: bool = False,
) -> Candidates:
    """Draw an id at each scored place.

    Args:
        logits_BLV: of the whole block.
        scored_BL: places that get a candidate.
        mask: id that is never drawn.
        way: temperature, top-k and top-p.
        dice: a generator for each row; rows may share one. None is touched at temperature 0.
        tempered: whether log-probabilities are those that were drawn from, or the model's own.
    """
    logits_NV = logits_BLV[scored_BL.to(logits_BLV.device)].float().cpu()
    logits_NV[:, mask] = -torch.inf
    uniforms_BL = torch.zeros(scored_BL.shape, dtype=torch.float64)
    if way[0]:
        # A number is drawn for every position, open or not, so that a row's numbers do not depend on its ids.
        for row, rng in enumerate(dice):
            numbers_L = torch.rand(scored_BL.shape[1], generator=rng, dtype=torch.float64, device=rng.device)
            uniforms_BL[row] = numbers_L.cpu()
    scored_BL = scored_BL.cpu()
    heat_N = torch.full((len(logits_NV),), way[0], dtype=torch.float64)
    top_k_N = torch.full((len(logits_NV),), way[1], dtype=torch.int64)
    top_p_N = torch.full((len(logits_NV),), way[2], dtype=torch.float64)
    picks_N = draw(logits_NV, uniforms_BL[scored_BL], heat_N, top_k_N, top_p_N)
    if tempered and way[0]:
        return Candidates(scored_BL, drawn_from(logits_NV, heat_N, top_k_N, top_p_N), picks_N)
    return Candidates(scored_BL, logits_NV.log_softmax(-1), picks_N)
