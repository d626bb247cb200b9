"""Muon for the matrices of a network, AdamW for all others, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the momentum of a matrix by five
Newton-Schulz iterations. Its updates are scaled to the size of AdamW's (Moonlight, arXiv:2502.16982, sec. 2.2), so that
one learning rate serves both. Matrices of one shape are orthogonalised together, which `torch.optim.Muon` does not do.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from cm3kit.training.parallel import spread, whole
from cm3kit.training.precision import computes_bf16

COEFFICIENTS = 3.4445, -4.7750, 2.0315
EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """Groups with `muon` set hold matrices; the others are AdamW's.

    Args:
        groups: parameter groups; each may have `muon`, `betas`, `weight_decay`.
        momentum: of Muon; Nesterov's.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], weight_decay: float,
        momentum: float = 0.95, eps: float = 1e-8,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "eps": eps,
            "muon": False,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            trained = [each for each in group["params"] if each.grad is not None]
            if trained:
                (self._orthogonal if group["muon"] else self._adaptive)(group, trained)

    def _adaptive(self, group: dict[str, Any], weights: list[nn.Parameter]) -> None:
        for each in weights:
            if not self.state[each]:
                self.state[each] = {
                    "step": torch.zeros((), dtype=torch.float32, device=each.device),
                    "exp_avg": torch.zeros_like(each),
                    "exp_avg_sq": torch.zeros_like(each),
                }
        states = [self.state[each] for each in weights]
        adamw(
            list[Tensor](weights), [each.grad for each in weights if each.grad is not None],
            [each["exp_avg"] for each in states], [each["exp_avg_sq"] for each in states], [],
            [each["step"] for each in states], fused=True, amsgrad=False, beta1=group["betas"][0],
            beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
            maximize=False,
        )  # fmt: skip

    def _orthogonal(self, group: dict[str, Any], weights: list[nn.Parameter]) -> None:
        by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for each in weights:
            assert each.grad is not None
            if not self.state[each]:
                self.state[each] = {"momentum_buffer": torch.zeros_like(each)}
            moved = self.state[each]["momentum_buffer"].lerp_(each.grad, 1 - group["momentum"])
            ahead = each.grad.lerp(moved, group["momentum"])
            # A matrix that is spread over processes is made whole: its update needs all of it.
            by_shape[tuple(each.shape)].append((each, whole(ahead) if isinstance(ahead, DTensor) else ahead))
        for shape, those in by_shape.items():
            updates_NRC = orthogonalised(torch.stack([ahead for _, ahead in those]))
            scale = 0.2 * max(shape) ** 0.5
            for (each, _), update_RC in zip(those, updates_NRC, strict=True):
                each.mul_(1 - group["lr"] * group["weight_decay"])
                each.add_(spread(update_RC.to(each.dtype), each), alpha=-group["lr"] * scale)


def orthogonalised(matrices_NRC: Tensor, steps: int = 5) -> Tensor:
    """The matrices U Vᵀ that are near matrices U S Vᵀ, up to singular values of 0.7 … 1.2.

    In bf16, as Muon's authors do, where the device has products in it; else in fp32.
    """
    x_NRC = matrices_NRC.to(torch.bfloat16 if computes_bf16(not matrices_NRC.is_cuda) else torch.float32)
    upright = x_NRC.shape[1] > x_NRC.shape[2]
    if upright:
        x_NRC = x_NRC.mT
    x_NRC = x_NRC / (x_NRC.norm(dim=(1, 2), keepdim=True) + EPSILON)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram_NRR = x_NRC @ x_NRC.mT
        x_NRC = a * x_NRC + (b * gram_NRR + c * gram_NRR @ gram_NRR) @ x_NRC
    out_NRC: Tensor = (x_NRC.mT if upright else x_NRC).to(matrices_NRC.dtype)
    return out_NRC


def matrices(model: nn.Module) -> set[int]:
    """Identities of the weights that Muon is for: matrices of layers, not of embeddings nor of the head."""
    tables = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    heads = {id(each) for name, each in model.named_parameters() if "lm_head" in name}
    return {id(each) for each in model.parameters() if each.ndim == 2} - tables - heads
