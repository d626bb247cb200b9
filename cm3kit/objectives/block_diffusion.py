"""Block diffusion: left to right over blocks, diffusion inside a block (BD3-LM, arXiv:2503.09573).

A row holds the noised page and then the clean one. A noised block sees itself and the clean blocks before it,
a clean block sees itself and the clean blocks before it (sec. 3.3; ACDiT, arXiv:2412.07720, has the halves
swapped). A block as long as the page is masked diffusion, blocks of one id are a causal model of hidden ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator

from cm3kit.objectives.masked_diffusion import MaskedDiffusion
from cm3kit.objectives.noise import EPSILON, times
from cm3kit.registry import objective
from cm3kit.types import Exercise
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab


@objective("block-diffusion")
@dataclass(frozen=True)
class BlockDiffusion:
    """Masked diffusion in blocks of `block_size` ids, each at a time of its own in [low, high).

    Args:
        inner: what is hidden and how it weighs; by default every id of the page. Its `pairs` and `shift` are not
            used: an id is read off its own place. What `drop` and `modality` hide, the clean copy hides too.

    Raises:
        ConfigError: `block_size` is under 1, or `low` and `high` are not in order in [0, 1].
    """

    vocab: Vocab
    block_size: int = 16
    low: float = EPSILON
    high: float = 1.0
    inner: MaskedDiffusion | None = None
    _inner: MaskedDiffusion = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.block_size < 1 or not 0 <= self.low < self.high <= 1:
            raise ConfigError(
                f"block_size = {self.block_size}, times in [{self.low}, {self.high}): a block holds at least one id,"
                " and times are in order in [0, 1].",
                code="bad_config",
            )
        object.__setattr__(self, "_inner", self.inner or MaskedDiffusion(self.vocab, hides="all"))

    @property
    def causal(self) -> bool:
        """Ids of a block look at one another."""
        return False

    def exercises(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Exercise]:
        """An `exercise` of each document."""
        return [self.exercise(ids, rng, budget) for ids in documents]

    def exercise(self, ids: Sequence[int], rng: Generator, budget: int) -> Exercise:
        """The noised and the clean copy of one document, or of a slice, in at most `budget` ids together.

        Raises:
            ConfigError: half of `budget` is under 3, or a picture that is all there is does not fit into it.
        """
        inner, noise = self._inner, self._inner._noise
        layout = inner.lay_out(ids, rng, budget // 2)
        size = len(layout.ids)
        levels = times(-(-size // self.block_size), rng, max(self.low, EPSILON), self.high)
        odds = torch.rand(size, generator=rng, dtype=torch.float64).tolist()
        whole, unseen = inner._whole(layout, rng)
        shown, asked = inner.shown(layout, whole, unseen)
        noised, weights, spread = list(shown), [0.0] * size, [0.0] * size
        scored = inner.scored(layout)
        for place, id in enumerate(layout.ids):
            t = levels[place // self.block_size]
            spread[place] = 1 - noise.alpha(t)
            if asked[place] and odds[place] < spread[place]:
                noised[place] = self.vocab.mask
                weights[place] = inner._weight(t) * inner._factor(id) if scored[place] else 0.0
        places = list(range(size))
        blocks = [place // self.block_size for place in places]
        maskable = float(sum(asked))
        if inner.norm == "sequence" and maskable:
            weights = [each / maskable for each in weights]
        hidden = sum(now != before for now, before in zip(noised, shown, strict=True))
        mass = float(hidden if inner.weighting == "flat" else maskable) if inner.norm == "token" else 1.0
        return Exercise(
            [*layout.ids, *layout.ids], [*weights, *[0.0] * size], layout.answers,
            [*noised, *shown], [*blocks, *blocks], [*[True] * size, *[False] * size], [*places, *places],
            time=[*spread, *[0.0] * size], shift=False, mass=mass,
        )  # fmt: skip
