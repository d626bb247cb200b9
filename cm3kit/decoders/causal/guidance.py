"""Combine the streams of one row: classifier-free guidance and CD-K (CM3Leon, arXiv:2309.02591, sec. 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from cm3kit.decoders.settings import DecodeConfig


def streams(config: DecodeConfig, guides: int) -> int:
    """How many streams a row with so many guide prompts needs: weights of 1 need none of the guides."""
    if config.cd_k is not None:
        return 1 + min(guides, 1)
    idle = config.guidance == 1 and (guides < 2 or config.guidance_image == 1)
    return 1 if idle else 1 + min(guides, 2)


def guide(logits_KBV: Tensor, weight: float, image_weight: float) -> Tensor:
    """Guided logits (B, V).

    Args:
        logits_KBV: streams in the order conditional, unconditional, image-only. Two streams give
            l_unc + w (l_cond - l_unc), three l_unc + w_image (l_image - l_unc) + w (l_cond - l_image).
    """
    if len(logits_KBV) == 1:
        return logits_KBV[0]
    cond_BV, uncond_BV = logits_KBV[0], logits_KBV[1]
    if len(logits_KBV) == 2:
        return uncond_BV + weight * (cond_BV - uncond_BV)
    image_BV = logits_KBV[2]
    return uncond_BV + image_weight * (image_BV - uncond_BV) + weight * (cond_BV - image_BV)


def cd_k(
    expert_BV: Tensor,
    student_BV: Tensor,
    allowed_BV: Tensor,
    k: int,
    alpha: float,
    temperatures: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Contrastive scores log p_expert - log p_student of ids near the k-th best, -inf elsewhere (B, V).

    An id stays if p_expert is at least `alpha` times the k-th largest p_expert among allowed ids;
    k = 1 is contrastive decoding (Li et al., arXiv:2210.15097).

    Args:
        temperatures: of the expert and of the student.
    """
    expert_BV = (expert_BV / temperatures[0]).masked_fill(~allowed_BV, -torch.inf).log_softmax(-1)
    student_BV = (student_BV / temperatures[1]).masked_fill(~allowed_BV, -torch.inf).log_softmax(-1)
    best_BK = expert_BV.topk(min(k, expert_BV.shape[1]), dim=-1).values
    # Fewer than k allowed ids leave -inf at the k-th place: then the last allowed one is the k-th.
    count_B1 = allowed_BV.sum(-1, keepdim=True).clamp(max=best_BK.shape[1])
    cut_B1 = best_BK.gather(-1, count_B1 - 1)
    # The boundary itself is part of the set, and rounding must not drop it.
    kept_BV = expert_BV >= cut_B1 + _log(alpha) - 1e-6
    return (expert_BV - student_BV).masked_fill(~(kept_BV & allowed_BV), -torch.inf)


def combine(logits_KBV: Tensor, allowed_BV: Tensor, config: DecodeConfig) -> Tensor:
    """Logits (B, V) that a row samples from, -inf at ids that are not allowed."""
    if config.cd_k is not None and len(logits_KBV) > 1:
        heat = (config.cd_expert_temperature, config.cd_student_temperature)
        return cd_k(logits_KBV[0], logits_KBV[1], allowed_BV, config.cd_k, config.cd_alpha, heat)
    guided_BV = guide(logits_KBV, config.guidance, config.guidance_image)
    return guided_BV.masked_fill(~allowed_BV, -torch.inf)


def _log(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).log())
