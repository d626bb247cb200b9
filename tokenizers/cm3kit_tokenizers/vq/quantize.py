"""Vector quantisation in fp32: nearest code, straight-through or rotated gradients, restarts of unused codes.

Codes are initialised from data and unused codes restart from data, to prevent codebook collapse.
The codebook is an exponential moving average of its vectors (arXiv:1711.00937, app. A.1); the commitment
term has weight β on the encoder's side (eq. 3, without the swapped weights of taming-transformers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, distributed, nn

from cm3kit_tokenizers.vq.quantizers import Quantizer, quantizers
from cm3kit_tokenizers.vq.quantizers import nearest as nearest

TOGETHER = 2048  # vectors, which bounds the memory of their distances to all codes


@dataclass(frozen=True, slots=True)
class Quantized:
    """Vectors of a grid replaced by their codes.

    Shapes: `vectors_BCHW` as the input, `codes_BHW` integer ids; `commitment` (the encoder's side) and `moved` (the
    codes' side, zero where they follow by moving average) are scalars.
    """

    vectors_BCHW: Tensor
    codes_BHW: Tensor
    commitment: Tensor
    moved: Tensor


def rotate_to(vectors_ND: Tensor, targets_ND: Tensor) -> Tensor:
    """The value of `targets`, with gradients transformed by the rotation from vector to target.

    arXiv:2410.06424, eq. 4: q = |q|/|e| · R e with R = I − 2 r rᵀ + 2 q̂ êᵀ held constant.
    """
    with torch.no_grad():
        e_ND = nn.functional.normalize(vectors_ND, dim=1)
        q_ND = nn.functional.normalize(targets_ND, dim=1)
        r_ND = nn.functional.normalize(e_ND + q_ND, dim=1)
        scale_N1 = targets_ND.norm(dim=1, keepdim=True) / vectors_ND.norm(dim=1, keepdim=True).clamp_min(1e-6)
    reflected_ND = vectors_ND - 2 * (vectors_ND * r_ND).sum(1, keepdim=True) * r_ND
    rotated_ND: Tensor = scale_N1 * (reflected_ND + 2 * (vectors_ND * e_ND).sum(1, keepdim=True) * q_ND)
    return rotated_ND


def of_all_processes(mine_N: Tensor) -> Tensor:
    """Rows of all training processes, by rank; the input itself for a single process."""
    if not distributed.is_available() or not distributed.is_initialized():
        return mine_N
    sizes = [
        torch.zeros(1, dtype=torch.long, device=mine_N.device) for _ in range(distributed.get_world_size())
    ]
    distributed.all_gather(sizes, torch.tensor([len(mine_N)], device=mine_N.device))
    counts = [int(each) for each in sizes]
    padded_N = mine_N.new_zeros((max(counts), *mine_N.shape[1:]))
    padded_N[: len(mine_N)] = mine_N
    found = [torch.empty_like(padded_N) for _ in counts]
    distributed.all_gather(found, padded_N)
    return torch.cat([each[:count] for each, count in zip(found, counts, strict=True)])


class Codebook(nn.Module):
    """Codebook in training: usage counts and updates of codes.

    Args:
        weight: the embedding of the codes (shared with the network, and saved with it).
        decay: of the moving averages, per step.
        restart_below: a code whose average count falls below this restarts from a vector of the batch.
        rotation: rotated gradients instead of straight-through.
        rule: the quantizer; by default nearest code.
        gradient: codes learn by gradient instead of moving average, if the rule allows both.
    """

    counts_K: Tensor
    sums_KD: Tensor
    started: Tensor

    def __init__(
        self, weight: nn.Parameter, decay: float = 0.99, restart_below: float = 0.05, rotation: bool = True,
        rule: Quantizer | None = None, gradient: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        rule = rule if rule is not None else quantizers["vq"](*weight.shape)
        self._held = (weight, rule)  # in a tuple, so that only the network registers and saves them
        self.decay, self.restart_below = decay, restart_below
        self.rotation = rotation if rule.rotation is None else rule.rotation
        self.averaged = rule.averaged and not gradient
        weight.requires_grad_((rule.starts and not self.averaged) or _learns(rule))
        self.register_buffer("counts_K", torch.ones(len(weight)))
        self.register_buffer("sums_KD", weight.detach().clone())
        self.register_buffer("started", torch.tensor(not rule.starts))

    @property
    def weight(self) -> nn.Parameter:
        """The codes, `(K, D)`."""
        return self._held[0]

    @property
    def rule(self) -> Quantizer:
        """The quantizer."""
        return self._held[1]

    def forward(self, vectors_BCHW: Tensor, rng: Generator | None = None) -> Quantized:
        """Quantise; in training mode also update the codes, which needs `rng` for restarts."""
        B, C, H, W = vectors_BCHW.shape
        vectors_ND = vectors_BCHW.float().permute(0, 2, 3, 1).reshape(-1, C)
        quantise = self._average if self.averaged else self._learn
        targets_ND, codes_N, commitment, moved = quantise(vectors_ND, rng)
        grid_BCHW = targets_ND.view(B, H, W, C).permute(0, 3, 1, 2)
        return Quantized(grid_BCHW, codes_N.view(B, H, W), commitment, moved)

    def _average(self, vectors_ND: Tensor, rng: Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        vectors_ND = self.rule.prepare(vectors_ND)
        codes_N = self.rule.codes(vectors_ND, self.weight)
        if self.training and rng is not None:
            seen_ND, seen_N = of_all_processes(vectors_ND.detach()), of_all_processes(codes_N)
            if bool(torch.isfinite(seen_ND).all()):
                self._move(seen_ND, seen_N, rng)
        targets_ND = self.weight[codes_N]
        commitment = (vectors_ND - targets_ND).square().mean()
        return self._carried(vectors_ND, targets_ND), codes_N, commitment, commitment.new_zeros(())

    def _learn(self, vectors_ND: Tensor, rng: Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.rule.settle(self.weight)
        moves = self.training and rng is not None
        seen_ND = of_all_processes(vectors_ND.detach()) if moves else vectors_ND
        rng = rng if moves and bool(torch.isfinite(seen_ND).all()) else None
        if (
            rng is not None and self.rule.starts
        ):  # before the codes are used, as autograd needs them unchanged
            self._restart(self.rule.prepare(seen_ND), rng)
        targets_ND, codes_N, commitment, moved = self.rule.learn(vectors_ND, self.weight, rng)
        if rng is not None:
            counts_K = torch.bincount(of_all_processes(codes_N), minlength=len(self.weight)).float()
            self.counts_K.lerp_(counts_K, 1 - self.decay)
        if self.rule.averaged:  # chosen by the recipe, so the gradients are those of the averaged rule
            targets_ND = self._carried(self.rule.prepare(vectors_ND), targets_ND.detach())
        return targets_ND, codes_N, commitment, moved

    def _carried(self, vectors_ND: Tensor, targets_ND: Tensor) -> Tensor:
        if not self.training:
            return targets_ND
        straight_ND = vectors_ND + (targets_ND - vectors_ND).detach()
        return rotate_to(vectors_ND, targets_ND) if self.rotation else straight_ND

    @torch.no_grad()
    def start(self, vectors_ND: Tensor, rng: Generator, rounds: int = 8) -> None:
        """Initialise the codes by k-means over `vectors_ND`, `TOGETHER` at once."""
        vectors_ND = self.rule.prepare(vectors_ND)
        pick_K = torch.randint(len(vectors_ND), (len(self.weight),), generator=rng)
        codes_KD = vectors_ND[pick_K] + 1e-4 * torch.randn(self.weight.shape, generator=rng).to(vectors_ND)
        for _ in range(rounds):
            codes_N = torch.cat([nearest(part_MD, codes_KD) for part_MD in torch.split(vectors_ND, TOGETHER)])
            sums_KD = torch.zeros_like(codes_KD).index_add_(0, codes_N, vectors_ND)
            counts_K = torch.bincount(codes_N, minlength=len(codes_KD)).float()
            codes_KD = torch.where(counts_K[:, None] > 0, sums_KD / counts_K[:, None].clamp_min(1), codes_KD)
        self.weight.copy_(self.rule.prepare(codes_KD))
        self.counts_K.fill_(1.0)
        self.sums_KD.copy_(codes_KD)
        self.started.fill_(True)

    @torch.no_grad()
    def usage(self) -> dict[str, float]:
        """Statistics of recent codes: share in use, share of dead codes, perplexity."""
        shares_K = self.counts_K / self.counts_K.sum().clamp_min(1e-9)
        entropy = -(shares_K * shares_K.clamp_min(1e-12).log()).sum()
        return {
            "used": float((self.counts_K > 0.01).float().mean()),
            "dead": float((self.counts_K < self.restart_below).float().mean()),
            "perplexity": float(entropy.exp()),
        }

    @torch.no_grad()
    def _move(self, vectors_ND: Tensor, codes_N: Tensor, rng: Generator) -> None:
        counts_K = torch.bincount(codes_N, minlength=len(self.weight)).float()
        sums_KD = torch.zeros_like(self.sums_KD).index_add_(0, codes_N, vectors_ND)
        self.counts_K.lerp_(counts_K, 1 - self.decay)
        self.sums_KD.lerp_(sums_KD, 1 - self.decay)
        dead_K = (self.counts_K < self.restart_below).nonzero()[:, 0]
        if len(dead_K):
            pick = torch.randint(len(vectors_ND), (len(dead_K),), generator=rng)
            self.sums_KD[dead_K] = vectors_ND[pick]
            self.counts_K[dead_K] = 1.0
        self.weight.copy_(self.rule.prepare(self.sums_KD / self.counts_K[:, None].clamp_min(1e-6)))

    @torch.no_grad()
    def _restart(self, vectors_ND: Tensor, rng: Generator) -> None:
        """Reset unused codes that learn by gradient to vectors of the batch."""
        dead_K = (self.counts_K < self.restart_below).nonzero()[:, 0]
        if len(dead_K):
            pick = torch.randint(len(vectors_ND), (len(dead_K),), generator=rng)
            self.weight[dead_K] = vectors_ND[pick]
            self.counts_K[dead_K] = 1.0


def _learns(rule: Quantizer) -> bool:
    """Whether the codebook is a weight that is neither averaged nor computed from others."""
    return not rule.averaged and type(rule).settle is Quantizer.settle
