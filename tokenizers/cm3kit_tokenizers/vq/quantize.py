"""Vector quantisation in fp32: nearest code, straight-through or rotated gradients, codes that never die.

Codes start from data and an unused code restarts from data, the two cheap cures for codebook collapse.
The codebook follows its vectors by exponential moving average (arXiv:1711.00937, app. A.1); the commitment
term carries weight β on the encoder's side (eq. 3, without the swapped weights of taming-transformers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn


@dataclass(frozen=True, slots=True)
class Quantized:
    """Vectors of a grid replaced by their nearest codes.

    Shapes: `vectors_BCHW` like the input, `codes_BHW` integer ids, `commitment` a scalar.
    """

    vectors_BCHW: Tensor
    codes_BHW: Tensor
    commitment: Tensor


def nearest(vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index of the nearest code of each vector, in fp32 whatever the input's precision; shape (N,)."""
    vectors_ND, codebook_KD = vectors_ND.float(), codebook_KD.float()
    with torch.autocast(vectors_ND.device.type, enabled=False):  # it would round the product to bf16
        distances_NK: Tensor = codebook_KD.square().sum(1) - 2 * vectors_ND @ codebook_KD.T
    return distances_NK.argmin(1)


def rotate_to(vectors_ND: Tensor, targets_ND: Tensor) -> Tensor:
    """The value of `targets`, with gradients carried back by the rotation that maps vector to target.

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


class Codebook(nn.Module):
    """Codes with their moving averages.

    Args:
        weight: the embedding that holds the codes (shared with the network, so it is saved with it).
        decay: of the moving averages, per step.
        restart_below: a code whose average count falls below this restarts from a vector of the batch.
        rotation: rotated gradients instead of straight-through.
    """

    counts_K: Tensor
    sums_KD: Tensor
    started: Tensor

    def __init__(
        self, weight: nn.Parameter, decay: float = 0.99, restart_below: float = 0.05, rotation: bool = True
    ) -> None:
        super().__init__()
        self._held = (weight,)  # in a tuple, so that the network alone registers and saves it
        self.decay, self.restart_below, self.rotation = decay, restart_below, rotation
        weight.requires_grad_(False)
        self.register_buffer("counts_K", torch.ones(len(weight)))
        self.register_buffer("sums_KD", weight.detach().clone())
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @property
    def weight(self) -> nn.Parameter:
        """The codes, `(K, D)`."""
        return self._held[0]

    def forward(self, vectors_BCHW: Tensor, rng: Generator | None = None) -> Quantized:
        """Quantise; in training mode also move the codes, which needs `rng` for restarts."""
        B, C, H, W = vectors_BCHW.shape
        vectors_ND = vectors_BCHW.float().permute(0, 2, 3, 1).reshape(-1, C)
        codes_N = nearest(vectors_ND, self.weight)
        if self.training and rng is not None and bool(torch.isfinite(vectors_ND).all()):
            self._move(vectors_ND.detach(), codes_N, rng)
        targets_ND = self.weight[codes_N]
        commitment = (vectors_ND - targets_ND).square().mean()
        if self.training:
            straight_ND = vectors_ND + (targets_ND - vectors_ND).detach()
            targets_ND = rotate_to(vectors_ND, targets_ND) if self.rotation else straight_ND
        grid_BCHW = targets_ND.view(B, H, W, C).permute(0, 3, 1, 2)
        return Quantized(grid_BCHW, codes_N.view(B, H, W), commitment)

    @torch.no_grad()
    def start(self, vectors_ND: Tensor, rng: Generator, rounds: int = 8) -> None:
        """Place the codes on data by k-means over `vectors_ND`."""
        pick_K = torch.randint(len(vectors_ND), (len(self.weight),), generator=rng)
        codes_KD = vectors_ND[pick_K] + 1e-4 * torch.randn(self.weight.shape, generator=rng).to(vectors_ND)
        for _ in range(rounds):
            codes_N = nearest(vectors_ND, codes_KD)
            sums_KD = torch.zeros_like(codes_KD).index_add_(0, codes_N, vectors_ND)
            counts_K = torch.bincount(codes_N, minlength=len(codes_KD)).float()
            codes_KD = torch.where(counts_K[:, None] > 0, sums_KD / counts_K[:, None].clamp_min(1), codes_KD)
        self.weight.copy_(codes_KD)
        self.counts_K.fill_(1.0)
        self.sums_KD.copy_(codes_KD)
        self.started.fill_(True)

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
        self.weight.copy_(self.sums_KD / self.counts_K[:, None].clamp_min(1e-6))
