"""Block diffusion: left to right over blocks, diffusion inside a block (BD3-LM, arXiv:2503.09573).

A row holds the noised page and then the clean one. A noised block attends to itself and the clean blocks before it,
a clean block to itself and the clean blocks before it (sec. 3.3; ACDiT, arXiv:2412.07720, has the halves
swapped). A block as long as the page is masked diffusion, blocks of one id are a causal model of masked ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Generator

from cm3kit.objectives.contract import Objective, ObjectiveSettings, TokenizerParts, Use
from cm3kit.objectives.gaps import Layout
from cm3kit.objectives.masked_diffusion import DiffusionSettings, MaskedDiffusion
from cm3kit.objectives.noise import EPSILON, times
from cm3kit.registry import objective
from cm3kit.types import Example
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab


def check_blocks(size: int, low: float, high: float) -> None:
    """Raise ConfigError (`bad_config`) unless size ≥ 1 and 0 ≤ low < high ≤ 1."""
    if size < 1 or not 0 <= low < high <= 1:
        raise ConfigError(
            f"block_size = {size}, times in [{low}, {high}): a block has at least one id,"
            " and 0 <= low < high <= 1.",
            code="bad_config",
        )


class BlockSettings(DiffusionSettings):
    """Settings of masked diffusion, and `block_size`, `low` and `high` of `BlockDiffusion`."""

    block_size: int = Field(16, ge=1)
    low: float = Field(1e-3, ge=0, lt=1)
    high: float = Field(1.0, gt=0, le=1)


class BlockDiffusionSettings(ObjectiveSettings):
    """Settings of masking, blocks and loss weights."""

    name: str = "block-diffusion"
    diffusion: BlockSettings = BlockSettings()


@objective("block-diffusion")
@dataclass(frozen=True)
class BlockDiffusion:
    """Masked diffusion in blocks of `block_size` ids, each with its own time in [low, high).

    Args:
        inner: masking and loss weights; by default every id of the page can be masked. Ids that `cond_dropout` and
            `modality_dropout` mask are masked in the clean copy too.

    Raises:
        ConfigError: `block_size` is under 1, not 0 ≤ `low` < `high` ≤ 1, or `inner` has a shift (the position before
            a block does not attend to the block) or is `ordered`.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = BlockDiffusionSettings
    copies: ClassVar[int] = 2
    masks: ClassVar[bool] = True

    vocab: Vocab
    block_size: int = 16
    low: float = EPSILON
    high: float = 1.0
    inner: MaskedDiffusion | None = None
    _inner: MaskedDiffusion = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_blocks(self.block_size, self.low, self.high)
        if self.inner is not None and self.inner.ordered:
            raise ConfigError(
                "ordered > 0, but block diffusion masks each block at its own time; omit it.",
                code="bad_config",
            )
        if self.inner is not None and self.inner.shift:
            raise ConfigError(
                "shift = true, but block diffusion predicts each id at its own position; omit it.",
                code="bad_config",
            )
        object.__setattr__(self, "_inner", self.inner or MaskedDiffusion(self.vocab, hides="all"))

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """See `Objective`."""
        how, inner = settings.diffusion, MaskedDiffusion.build(settings, parts)
        return cls(parts.vocab, how.block_size, how.low, how.high, inner)

    def uses(self, window: int) -> tuple[Use, ...]:
        """Infill in place, block by block."""
        asked = {"name": "block-diffusion", "diffusion": {"block_size": self.block_size}}
        return (
            Use(
                decoder="diffusion", layout="in-place", attention="full", window=window // 2,
                block_size=self.block_size, cache="exact", objective=asked,
            ),
        )  # fmt: skip

    def validation(self) -> Mapping[str, Objective]:
        """The evidence lower bound."""
        inner = None if self.inner is None else self.inner.exact()
        return {"bound_": BlockDiffusion(self.vocab, self.block_size, inner=inner)}

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """The examples of each document."""
        return [each for ids in documents for each in self.make_example(ids, rng, budget)]

    def make_example(self, ids: Sequence[int], rng: Generator, budget: int) -> list[Example]:
        """The noised and the clean copy of one document, or of a slice, in at most `budget` ids together.

        With `inner.complementary_masks` a second example masks the complement in every block.

        Raises:
            ConfigError: half of `budget` is under 3, or the only picture of a document does not fit into it.
        """
        inner, noise = self._inner, self._inner._noise
        layout = inner.lay_out(ids, rng, budget // 2)
        size = len(layout.ids)
        levels = times(-(-size // self.block_size), rng, max(self.low, EPSILON), self.high)
        t_T = [levels[place // self.block_size] for place in range(size)]
        alpha_T = [noise.alpha(t) for t in t_T]
        odds_T = torch.rand(size, generator=rng, dtype=torch.float64).tolist()
        hidden_T = [odd < 1 - alpha for odd, alpha in zip(odds_T, alpha_T, strict=True)]
        shown = inner.shown(layout, *inner._whole(layout, rng))
        spread_T = [1 - alpha for alpha in alpha_T]
        out = [self._ask(layout, shown, hidden_T, spread_T, [inner._weight(t) for t in t_T])]
        if inner.complementary_masks:
            rest_T = [not each for each in hidden_T]
            out.append(self._ask(layout, shown, rest_T, alpha_T, [inner._rest_weight(t) for t in t_T]))
        return out

    def _ask(
        self,
        layout: Layout,
        shown: tuple[list[int], list[bool]],
        hidden_T: list[bool],
        spread_T: list[float],
        level_T: list[float],
    ) -> Example:
        """Mask these positions, if they may have a loss; each has its block's noise level and weight."""
        inner, (clean_T, asked_T), size = self._inner, shown, len(layout.ids)
        noised_T, weights_T, scored_T = list(clean_T), [0.0] * size, inner.scored(layout)
        now_T = [ask and hide for ask, hide in zip(asked_T, hidden_T, strict=True)]
        for place, id in enumerate(layout.ids):
            if now_T[place]:
                noised_T[place] = self.vocab.mask
                weights_T[place] = level_T[place] * inner._factor(id) if scored_T[place] else 0.0
        maskable = sum(asked_T)
        if inner.norm == "sequence" and maskable:
            weights_T = [each / maskable for each in weights_T]
        mass = (
            float(sum(now_T) if inner.weighting == "uniform" else maskable) if inner.norm == "token" else 1.0
        )
        places = list(range(size))
        blocks = [place // self.block_size for place in places]
        return Example(
            [*layout.ids, *layout.ids], [*weights_T, *[0.0] * size], layout.answers,
            [*noised_T, *clean_T], [*blocks, *blocks], [*[True] * size, *[False] * size], [*places, *places],
            time=[*spread_T, *[0.0] * size], shift=False, mass=mass,
        )  # fmt: skip
