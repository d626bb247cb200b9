"""Guidance of a masked-diffusion model: classifier-free guidance on logits (LLaDA, arXiv:2502.09992, app. A.3)."""

from __future__ import annotations

from torch import Tensor

from cm3kit.decoders.diffusion.settings import DiffusionConfig


def weight(config: DiffusionConfig, time: float, step: int = 0, steps: int = 1) -> float:
    """Weight g of the condition at diffusion time t: constant, or 1 + (g - 1)(1 - t).

    The linear schedule is that of UniDisc (arXiv:2503.20853): guidance harms while little is written
    (arXiv:2507.08965). Its code, and MeDiM's, take t from the step and not from what is open (`steps`), of as many as
    were asked for, also where the plan is shorter; samplers of the reverse process have one t.
    """
    if config.guidance_schedule == "constant":
        return config.guidance
    by_step = config.guidance_schedule == "steps" and config.sampler == "confidence"
    return 1 + (config.guidance - 1) * (step / max(steps, config.steps or 0) if by_step else 1 - time)


def mix(logits_MV: Tensor, guide_MV: Tensor, weight: float) -> Tensor:
    """Guided logits u + g (c - u). Both must be finite: masks come after, or -inf less -inf is no number."""
    return guide_MV + weight * (logits_MV - guide_MV)
