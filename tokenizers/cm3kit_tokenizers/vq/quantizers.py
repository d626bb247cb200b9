"""Quantizers: one class per rule, registered by name. For all of them decoding is a lookup in the codebook.

Codes that are computed (from levels, signs, a projection) are written into the codebook of the network, so that
diffusers can decode any saved folder. All arithmetic is fp32, independent of the network's precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from cm3kit_tokenizers.registry import Registry


class Quantizer(nn.Module):
    """Base class of quantizers, with their own weights, if any.

    Args:
        codes: number of codes (K).
        code_dim: length of a vector (D).
        levels: values of each coordinate, for `fsq`; vectors of each level, for `residual`.
    """

    averaged = True  # in training codes are moving averages of their vectors, and start and restart from data
    starts = True  # codes are initialised from data after some training steps without quantisation
    rotation: bool | None = None  # rotated gradients; None: set by the recipe

    def __init__(self, codes: int, code_dim: int, levels: Sequence[int] = ()) -> None:
        super().__init__()
        self.size, self.code_dim, self.levels = codes, code_dim, tuple(levels)

    @classmethod
    def check(cls, codes: int, code_dim: int, levels: Sequence[int]) -> None:
        """ValueError if the sizes are not possible."""
        if levels:
            raise ValueError("levels are for the quantizers fsq and residual; omit them")

    def prepare(self, vectors_ND: Tensor) -> Tensor:
        """Transform vectors for the comparison with codes."""
        return vectors_ND

    def scores(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """Score of each code, `(N, K)`; the code is the argmax."""
        vectors_ND, codebook_KD = self.prepare(vectors_ND.float()), codebook_KD.float()
        with torch.autocast(vectors_ND.device.type, enabled=False):
            near_NK: Tensor = 2 * vectors_ND @ codebook_KD.T - codebook_KD.square().sum(1)
        return near_NK - vectors_ND.square().sum(1, keepdim=True)

    def codes(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """The code of each vector, `(N,)`."""
        return nearest(self.prepare(vectors_ND.float()), codebook_KD)

    @torch.no_grad()
    def settle(self, codebook_KD: Tensor) -> None:
        """Write computed codes into the codebook."""

    def learn(
        self, vectors_ND: Tensor, codebook_KD: Tensor, rng: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantise with gradients: vectors `(N, D)`, codes `(N,)`, commitment of the encoder, loss of the codes."""
        vectors_ND = self.prepare(vectors_ND)
        codes_N = self.codes(vectors_ND, codebook_KD)
        targets_ND = codebook_KD[codes_N]
        commitment = (vectors_ND - targets_ND.detach()).square().mean()
        moved = (targets_ND - vectors_ND.detach()).square().mean()
        return straight(vectors_ND, targets_ND), codes_N, commitment, moved


quantizers: Registry[type[Quantizer]] = Registry("quantizer")


def nearest(vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index of the nearest code of each vector, computed in fp32; shape (N,)."""
    vectors_ND, codebook_KD = vectors_ND.float(), codebook_KD.float()
    with torch.autocast(vectors_ND.device.type, enabled=False):  # it would round the product to bf16
        distances_NK: Tensor = codebook_KD.square().sum(1) - 2 * vectors_ND @ codebook_KD.T
    return distances_NK.argmin(1)


def straight(vectors: Tensor, targets: Tensor) -> Tensor:
    """The value of `targets` with the gradient of `vectors`."""
    return vectors + (targets - vectors).detach()


@quantizers("vq")
class Euclidean(Quantizer):
    """The nearest code (arXiv:1711.00937)."""


@quantizers("rotation")
class Rotated(Quantizer):
    """The nearest code; in training gradients are always rotated (arXiv:2410.06424)."""

    rotation = True


@quantizers("vq_l2")
class Spherical(Quantizer):
    """The nearest code on the unit sphere (arXiv:2110.04627, 3.2; LlamaGen): the codes are unit vectors."""

    def prepare(self, vectors_ND: Tensor) -> Tensor:
        """Vectors of length 1."""
        return F.normalize(vectors_ND, dim=1)

    def codes(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """The code of each vector, `(N,)`; codes rounded to half precision are renormalised."""
        return nearest(self.prepare(vectors_ND.float()), self.prepare(codebook_KD.float()))


@quantizers("vq_dot")
class InnerProduct(Quantizer):
    """The code with the largest inner product; all codes learn through a softmax (IBQ, arXiv:2412.02692)."""

    averaged = False

    def scores(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """Inner products, `(N, K)`."""
        with torch.autocast(vectors_ND.device.type, enabled=False):
            return vectors_ND.float() @ codebook_KD.float().T

    def codes(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """The code of each vector, `(N,)`."""
        return self.scores(vectors_ND, codebook_KD).argmax(1)

    def learn(
        self, vectors_ND: Tensor, codebook_KD: Tensor, rng: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the base, but every code gets gradients weighted by its probability."""
        scores_NK = self.scores(vectors_ND, codebook_KD)
        codes_N = scores_NK.argmax(1)
        hard_NK = F.one_hot(codes_N, self.size).to(scores_NK)
        chosen_ND = straight(scores_NK.softmax(1), hard_NK) @ codebook_KD
        targets_ND = codebook_KD[codes_N]
        commitment = (vectors_ND - targets_ND.detach()).square().mean()
        return chosen_ND, codes_N, commitment, (targets_ND - vectors_ND.detach()).square().mean()


@quantizers("gumbel_argmax")
class Gumbel(Quantizer):
    """A linear classifier chooses the code: sampled in training (arXiv:1611.01144), argmax otherwise.

    taming-transformers also samples when it encodes, so its ids are not reproducible; these are.
    The commitment term is the divergence from the uniform distribution; weight it with about 5e-4.
    """

    averaged = starts = False

    def __init__(self, codes: int, code_dim: int, levels: Sequence[int] = ()) -> None:
        super().__init__(codes, code_dim, levels)
        self.proj = nn.Linear(code_dim, codes)

    def scores(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """Logits, `(N, K)`."""
        with torch.autocast(vectors_ND.device.type, enabled=False):
            return F.linear(vectors_ND.float(), self.proj.weight.float(), self.proj.bias.float())

    def codes(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """The most likely code of each vector, `(N,)`."""
        return self.scores(vectors_ND, codebook_KD).argmax(1)

    def learn(
        self, vectors_ND: Tensor, codebook_KD: Tensor, rng: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sampled codes with the gradients of the relaxed sample."""
        logits_NK = self.scores(vectors_ND, codebook_KD)
        noisy_NK = logits_NK
        if rng is not None:
            uniform_NK = torch.rand(logits_NK.shape, generator=rng).clamp(1e-9, 1 - 1e-7).to(logits_NK)
            noisy_NK = logits_NK - (-uniform_NK.log()).log()
        soft_NK, codes_N = noisy_NK.softmax(1), noisy_NK.argmax(1)
        vectors_ND = straight(soft_NK, F.one_hot(codes_N, self.size).to(soft_NK)) @ codebook_KD
        log_NK = logits_NK.log_softmax(1)
        divergence = (log_NK.exp() * (log_NK + math.log(self.size))).sum(1).mean()
        return vectors_ND, codes_N, divergence, divergence.new_zeros(())


@quantizers("fsq")
class FiniteScalar(Quantizer):
    """Each coordinate is bounded and rounded to one of its levels (arXiv:2309.15505); no weights."""

    averaged = starts = False

    @classmethod
    def check(cls, codes: int, code_dim: int, levels: Sequence[int]) -> None:
        """ValueError unless each coordinate has at least 3 levels (5 or more are better), with the product `codes`."""
        if len(levels) != code_dim or any(level < 3 for level in levels) or math.prod(levels) != codes:
            raise ValueError(
                f"fsq needs {code_dim} levels (code_dim) of at least 3 with the product {codes} (codes)"
            )

    def prepare(self, vectors_ND: Tensor) -> Tensor:
        """Coordinates bounded to their levels, in steps of 1."""
        levels_D = torch.tensor(self.levels, device=vectors_ND.device)
        half_D = (levels_D - 1) * (1 + 1e-3) / 2
        offset_D = 0.5 * (levels_D % 2 == 0)
        return (vectors_ND + (offset_D / half_D).atanh()).tanh() * half_D - offset_D

    def scores(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """Negative squared distances of bounded vectors, `(N, K)`."""
        half_D = torch.tensor(self.levels, device=vectors_ND.device) // 2
        return -torch.cdist(self.prepare(vectors_ND.float()) / half_D, codebook_KD.float()).square()

    def codes(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """The code of each vector, `(N,)`: its levels as digits, the first coordinate the lowest."""
        levels_D = torch.tensor(self.levels, device=vectors_ND.device)
        digits_ND = (self.prepare(vectors_ND.float()).round() + levels_D // 2).long()
        basis_D = torch.cat([levels_D.new_ones(1), levels_D[:-1].cumprod(0)])
        return (digits_ND * basis_D).sum(1)

    @torch.no_grad()
    def settle(self, codebook_KD: Tensor) -> None:
        """Write every combination of levels, scaled to about [−1, 1]."""
        left_K, columns = torch.arange(self.size), []
        for level in self.levels:
            columns.append((left_K % level - level // 2) / (level // 2))
            left_K = left_K // level
        codebook_KD.copy_(torch.stack(columns, 1))

    def learn(
        self, vectors_ND: Tensor, codebook_KD: Tensor, rng: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rounded coordinates, with the gradient of the bounded ones."""
        half_D = torch.tensor(self.levels, device=vectors_ND.device) // 2
        bounded_ND, codes_N = self.prepare(vectors_ND) / half_D, self.codes(vectors_ND, codebook_KD)
        zero = bounded_ND.new_zeros(())
        return straight(bounded_ND, codebook_KD[codes_N]), codes_N, zero, zero


@quantizers("lfq")
class LookupFree(Quantizer):
    """Signs of the coordinates, the first is the highest bit (arXiv:2310.05737); train it with an entropy term."""

    averaged = starts = False

    @classmethod
    def check(cls, codes: int, code_dim: int, levels: Sequence[int]) -> None:
        """ValueError unless codes = 2 to the power of code_dim."""
        super().check(codes, code_dim, levels)
        if 2**code_dim != codes:
            raise ValueError(f"lfq needs codes = 2^code_dim = {2**code_dim}")

    def codes(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """The code of each vector, `(N,)`."""
        bits_D = 2 ** torch.arange(self.code_dim - 1, -1, -1, device=vectors_ND.device)
        return ((vectors_ND > 0) * bits_D).sum(1)

    @torch.no_grad()
    def settle(self, codebook_KD: Tensor) -> None:
        """Write the corners of the cube from −1 to 1."""
        shifts_D = torch.arange(self.code_dim - 1, -1, -1)
        codebook_KD.copy_((torch.arange(self.size)[:, None] >> shifts_D & 1) * 2 - 1)


@quantizers("simvq")
class Projected(Quantizer):
    """The nearest of frozen random codes under one learnt linear map (SimVQ, arXiv:2411.02038)."""

    averaged = starts = False
    base_KD: Tensor

    def __init__(self, codes: int, code_dim: int, levels: Sequence[int] = ()) -> None:
        super().__init__(codes, code_dim, levels)
        self.register_buffer("base_KD", torch.randn(codes, code_dim) * code_dim**-0.5)
        self.proj = nn.Linear(code_dim, code_dim)

    @torch.no_grad()
    def settle(self, codebook_KD: Tensor) -> None:
        """Write the mapped codes."""
        codebook_KD.copy_(self.proj(self.base_KD))

    def learn(
        self, vectors_ND: Tensor, codebook_KD: Tensor, rng: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the base, with the codes' gradients going to the map."""
        with torch.autocast(vectors_ND.device.type, enabled=False):
            return super().learn(vectors_ND, self.proj(self.base_KD), rng)


def entropy_term(scores_NK: Tensor, temperature: float = 0.01) -> Tensor:
    """Mean entropy of each vector's choice minus the entropy of the mean choice (arXiv:2310.05737, eq. 5), in nats.

    Small if each choice is certain and all codes are chosen equally often.
    """
    log_NK = (scores_NK.float() / temperature).log_softmax(1)
    each = -(log_NK.exp() * log_NK).sum(1).mean()
    mean_K = log_NK.exp().mean(0)
    return each + (mean_K * mean_K.clamp_min(1e-12).log()).sum()
