"""Cross-entropy straight from hidden states: the logits of a few positions at a time, and of those alone that count.

Logits of a whole batch are its largest tensor. Here they are made chunk by chunk, and the gradient of a chunk is taken
while its logits are there (Hsu et al., Liger Kernel, arXiv:2410.10989, sec. 3.2), so that no chunk is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from cm3kit.models.backbone import head, logit_terms

LOGITS = 2**22, 2**25  # of a chunk: on a CPU, where they should stay near its caches, and on other devices
FEWEST = 128  # positions of a chunk, below which products become slow


def chunk_size(vocab_size: int, device: torch.device) -> int:
    """Positions whose logits are made together; by the vocabulary and the kind of device alone."""
    return max(FEWEST, LOGITS[device.type != "cpu"] // vocab_size // FEWEST * FEWEST)


def linear_nats(
    model: PreTrainedModel,
    hidden_ND: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    excluded: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighed cross-entropy of targets, in nats: the sum, and that of each (N,) without its weight or a gradient.

    Args:
        hidden_ND: last hidden states of the positions that are scored.
        weights_N: a position of weight 0 adds nothing to the sum, nor to gradients.
        excluded: an id that is never a target and has no share of the softmax, as the mask in MDLM's
            parameterisation (arXiv:2406.07524, sec. 3.2.3).
    """
    size = chunk_size(model.config.vocab_size, hidden_ND.device)
    weights_N = weights_N.float()
    outputs: Any = model.get_output_embeddings()
    if type(outputs) is not nn.Linear:  # such as one with adapters
        return _in_chunks(model, hidden_ND, targets_N, weights_N, size, excluded)
    divisor, factor, cap = logit_terms(model)
    scale, learns = (factor or 1.0) / (divisor or 1.0), torch.is_grad_enabled()
    total, nats_N = _LinearNats.apply(
        hidden_ND, outputs.weight, outputs.bias, targets_N, weights_N, (scale, cap, size, learns, excluded)
    )  # type: ignore[no-untyped-call]
    return total, nats_N


class _LinearNats(torch.autograd.Function):
    """See `linear_nats`: gradients are found on the way forward, and the way back scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, weights_N: Tensor,
        how: tuple[float, float | None, int, bool, int | None],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        scale, cap, size, learns, excluded = how
        kind = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
        table_VD, flat_ND = weight_VD.to(dtype), hidden_ND.to(dtype)
        nats, d_hidden = [], []
        # A frozen head, such as beside adapters, has no gradient of its own.
        of_table, of_bias = (learns and needed for needed in ctx.needs_input_grad[1:3])
        d_table_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if of_table else None
        d_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if of_bias and bias_V is not None else None
        for start in range(0, len(flat_ND), size):
            part_CD, chosen_C1 = flat_ND[start : start + size], targets_N[start : start + size, None]
            linear_CV = nn.functional.linear(part_CD, table_VD, None if bias_V is None else bias_V.to(dtype))
            logits_CV = linear_CV.float() * scale if scale != 1 else linear_CV.float()
            if cap is not None:
                logits_CV = torch.tanh(logits_CV / cap) * cap
            bent_CV = None if cap is None or not learns else 1 - (logits_CV / cap).square()
            if excluded is not None:
                logits_CV[:, excluded] = -torch.inf
            # Exponentials are taken once, for the sum and for the gradient.
            chosen_logit_C1, most_C1 = logits_CV.gather(-1, chosen_C1), logits_CV.amax(-1, keepdim=True)
            d_CV = logits_CV.sub_(most_C1).exp_()
            sums_C1 = d_CV.sum(-1, keepdim=True)
            nats.append((sums_C1.log() + most_C1 - chosen_logit_C1)[:, 0])
            if not learns:
                continue
            by_C1 = weights_N[start : start + size, None] * scale
            d_CV.mul_(by_C1 / sums_C1).scatter_add_(-1, chosen_C1, -by_C1)
            if bent_CV is not None:
                d_CV.mul_(bent_CV)
            low_CV = d_CV.to(dtype)
            d_hidden.append(low_CV @ table_VD)
            if d_table_VD is not None:
                d_table_VD += (low_CV.mT @ part_CD).float()
            if d_bias_V is not None:
                d_bias_V += d_CV.sum(0)
        nats_N = torch.cat(nats) if nats else weights_N
        d_hidden_ND = torch.cat(d_hidden).to(hidden_ND.dtype) if d_hidden else torch.zeros_like(hidden_ND)
        # A loss that is not finite has no gradient that is: what weighs nothing must not hide it.
        total = torch.where(weights_N != 0, nats_N * weights_N, 0.0).sum()
        ctx.mark_non_differentiable(nats_N)
        ctx.save_for_backward(d_hidden_ND, d_table_VD, d_bias_V)
        ctx.dtypes = weight_VD.dtype, None if bias_V is None else bias_V.dtype
        return total, nats_N

    @staticmethod
    def backward(ctx: Any, *given: Any) -> tuple[Tensor | None, ...]:
        by = given[0]
        d_hidden_ND, d_table_VD, d_bias_V = ctx.saved_tensors
        of_weight, of_bias = ctx.dtypes
        d_bias = None if d_bias_V is None else (d_bias_V * by).to(of_bias)
        return (
            d_hidden_ND * by.to(d_hidden_ND.dtype),
            None if d_table_VD is None else (d_table_VD * by).to(of_weight),
            d_bias,
            None,
            None,
            None,
        )


def _in_chunks(
    model: PreTrainedModel,
    hidden_ND: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    size: int,
    excluded: int | None,
) -> tuple[Tensor, Tensor]:
    """The same of any head, whose logits are computed again on the way back."""

    def of_some(part_CD: Tensor, targets_C: Tensor) -> Tensor:
        logits_CV = head(model, part_CD).float()
        if excluded is not None:
            logits_CV = logits_CV.index_fill(
                -1, torch.tensor([excluded], device=logits_CV.device), -torch.inf
            )
        nats_C: Tensor = logits_CV.logsumexp(-1) - logits_CV.gather(-1, targets_C[:, None])[:, 0]
        return nats_C

    parts = [
        checkpoint(of_some, part, targets, use_reentrant=False)
        for part, targets in zip(torch.split(hidden_ND, size), torch.split(targets_N, size), strict=True)
    ]
    nats_N = torch.cat(parts)
    return torch.where(weights_N != 0, nats_N * weights_N, 0.0).sum(), nats_N.detach()
