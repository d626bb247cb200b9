"""Causal masking and block diffusion in one pass: spans that cm3 moves behind the page are also filled in blocks.

A row holds the positions of the gaps, noised in blocks, and then the page in the layout of cm3, clean and causal:

    B0 B1 … | <eod> D0 <mask:0> D1 <eod> <mask:0> B0 B1 … <eoss>

A noised block attends to itself and all clean ids before it; its first position is scored in the clean copy, the others
at the positions before them (token shift). One set of weights learns both the causal decoder and one that writes
several positions at once (Fast-dLLM v2, arXiv:2509.26328, sec. 3, whose clean copy is bidirectional inside a block;
SDAR, arXiv:2510.06303). At inference finished blocks are cached as in a causal model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Generator

from cm3kit.objectives.block_diffusion import BlockSettings, check_blocks
from cm3kit.objectives.causal_mask import halves
from cm3kit.objectives.contract import Objective, ObjectiveSettings, TokenizerParts, Use
from cm3kit.objectives.gaps import Layout, draw_gaps, lay_out
from cm3kit.objectives.masked_diffusion import MaskedDiffusion
from cm3kit.objectives.next_token import NextToken
from cm3kit.objectives.noise import EPSILON, times
from cm3kit.objectives.units import cuts, too_small, window
from cm3kit.registry import objective
from cm3kit.types import Example, Span
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab

# A sliced page leaves room for this many gaps, each of which adds two sentinels and an end.
GAPS = 6


class CausalBlockSettings(BlockSettings):
    """Settings of block diffusion, and `causal_weight` of `CausalBlocks`."""

    causal_weight: float = Field(1.0, ge=0)


class CausalBlocksSettings(ObjectiveSettings):
    """Settings of masking, blocks and loss weights."""

    name: str = "causal-blocks"
    diffusion: CausalBlockSettings = CausalBlockSettings()


@objective("causal-blocks")
@dataclass(frozen=True)
class CausalBlocks:
    """Gaps moved behind the page as in `CausalMask`, predicted both from left to right and in blocks.

    Args:
        block_size: positions per block; each gap starts a new block.
        low: times of blocks are drawn from [low, high).
        inner: masking and loss weights.
        causal_weight: loss weight of the ids of the clean copy, times that of their modality.

    Raises:
        ConfigError: `block_size` is under 1, not 0 ≤ `low` < `high` ≤ 1, or `inner` masks whole pages or is
            `ordered`.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = CausalBlocksSettings
    copies: ClassVar[int] = 2
    masks: ClassVar[bool] = True

    vocab: Vocab
    block_size: int = 8
    low: float = EPSILON
    high: float = 1.0
    inner: MaskedDiffusion | None = None
    causal_weight: float = 1.0
    _inner: MaskedDiffusion = field(init=False, repr=False)

    def __post_init__(self) -> None:
        inner = self.inner or MaskedDiffusion(self.vocab)
        check_blocks(self.block_size, self.low, self.high)
        if inner.hides == "all" or inner.ordered:
            raise ConfigError(
                "causal-blocks masks gaps, each block at its own time; omit hides = all and ordered.",
                code="bad_config",
            )
        object.__setattr__(self, "_inner", replace(inner, shift=True))

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """See `Objective`."""
        how, inner = settings.diffusion, MaskedDiffusion.build(settings, parts)
        return cls(parts.vocab, how.block_size, how.low, how.high, inner, how.causal_weight)

    def uses(self, window: int) -> tuple[Use, ...]:
        """Infill behind the page: block by block, or from left to right."""
        asked = {"name": "causal-blocks", "diffusion": {"block_size": self.block_size, "shift": True}}
        return (
            Use(
                decoder="diffusion", attention="full", window=window // 2, shift=True, block_size=self.block_size,
                cache="causal", objective=asked,
            ),
            Use(window=window // 2, objective={"name": "cm3"}),
        )  # fmt: skip

    def validation(self) -> Mapping[str, Objective]:
        """The unmasked page, and the evidence lower bound."""
        inner = None if self.inner is None else self.inner.exact()
        blocks = CausalBlocks(self.vocab, self.block_size, inner=inner, causal_weight=0.0)
        return {"": NextToken(self.vocab, self._inner.continues), "bound_": blocks}

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """The examples of each document."""
        return [each for ids in documents for each in self.make_example(ids, rng, budget)]

    def make_example(self, ids: Sequence[int], rng: Generator, budget: int) -> list[Example]:
        """One document, or a slice, in at most `budget` ids: the blocks of its gaps, and the layout of cm3.

        With `inner.complementary_masks` a second example masks the complement in every block.

        Raises:
            ConfigError: half of `budget` is too short for a slice, or for the only picture of a document.
        """
        inner, noise = self._inner, self._inner._noise
        layout = self.lay_out(ids, rng, budget // 2)
        blocks = self._blocks(layout.answers)
        levels = times(len(blocks), rng, max(self.low, EPSILON), self.high)
        shown = inner.shown(layout, *inner._whole(layout, rng))
        spread, hidden, level, rest_level = {}, {}, {}, {}
        for block, t in zip(blocks, levels, strict=True):
            odds = torch.rand(block.stop - block.start, generator=rng, dtype=torch.float64).tolist()
            for place, odd in zip(range(block.start, block.stop), odds, strict=True):
                spread[place] = 1 - noise.alpha(t)
                hidden[place] = odd < spread[place]
                level[place], rest_level[place] = inner._weight(t), inner._rest_weight(t)
        out = [self._ask(layout, shown, blocks, hidden, spread, level)]
        if inner.complementary_masks:
            rest = {place: not each for place, each in hidden.items()}
            share = {place: 1 - each for place, each in spread.items()}
            out.append(self._ask(layout, shown, blocks, rest, share, rest_level))
        return out

    def lay_out(self, ids: Sequence[int], rng: Generator, budget: int) -> Layout:
        """The layout of cm3 in at most `budget` ids; `hidden` are the positions of its gaps."""
        inner, vocab = self._inner, self.vocab
        part: Span | None = Span(0, len(ids))
        if len(ids) > budget - 5:
            where = float(torch.rand((), generator=rng, dtype=torch.float64))
            room = budget - 2 - 3 * GAPS
            part = window(cuts(ids, vocab, inner.continues), room, where) if room > 0 else None
        if part is None or not ids:
            raise too_small(2 * budget)
        inside = ids[part.start : part.stop]
        room = budget - 2 - len(inside)
        gaps = draw_gaps(inside, inner.law, vocab, inner.grid, inner.continues, rng)
        gaps = gaps[: min(vocab.sentinels, room // 3)]
        filled = lay_out(inside, gaps, inner.law, vocab, room - 3 * len(gaps), rng)
        bodies = [filled.ids[each.start : each.stop] for each in filled.answers]
        opening = [vocab.eod] if part.start == 0 else []
        closing = [vocab.eod] if part.stop == len(ids) else []
        page, _ = halves(inside, gaps, vocab)
        return _behind([*opening, *page, *closing], bodies, vocab)

    def _blocks(self, answers: Sequence[Span]) -> list[Span]:
        size = self.block_size
        return [
            Span(start, min(start + size, each.stop))
            for each in answers
            for start in range(each.start, each.stop, size)
        ]

    def _ask(
        self,
        layout: Layout,
        shown: tuple[list[int], list[bool]],
        blocks: Sequence[Span],
        hidden: dict[int, bool],
        spread: dict[int, float],
        level: dict[int, float],
    ) -> Example:
        """Mask these positions, if they may have a loss; the first of a block is scored in the clean copy."""
        inner, (clean_T, asked_T), scored_T = self._inner, shown, self._inner.scored(layout)
        places = [place for block in blocks for place in range(block.start, block.stop)]
        first_of = {place: block.start for block in blocks for place in range(block.start, block.stop)}
        maskable = sum(asked_T)
        share = 1 / maskable if inner.norm == "sequence" and maskable else 1.0
        weights = {
            place: share * level[place] * inner._factor(layout.ids[place])
            if asked_T[place] and hidden[place] and scored_T[place]
            else 0.0
            for place in places
        }
        causal_T = [share * each for each in self._causal(layout, clean_T)]
        for block in blocks:
            causal_T[block.start] += weights[block.start]
            weights[block.start] = 0.0
        inputs = [self.vocab.mask if hidden[place] else clean_T[place] for place in places]
        size, mass = len(layout.ids), None if inner.norm == "token" else 1.0
        ends = accumulate((each.stop - each.start for each in layout.answers), initial=0)
        return Example(
            [*(layout.ids[place] for place in places), *layout.ids],
            [*(weights[place] for place in places), *causal_T],
            tuple(Span(start, stop) for start, stop in pairwise(ends)),
            [*inputs, *clean_T],
            [*(first_of[place] for place in places), *range(size)],
            [*[True] * len(places), *[False] * size],
            [*places, *range(size)],
            time=[*(spread[place] for place in places), *[0.0] * size],
            shift=True,
            mass=mass,
        )  # fmt: skip

    def _causal(self, layout: Layout, clean_T: Sequence[int]) -> list[float]:
        """Weights of the clean copy: 0 for sentinels, permanently masked ids, and ends after the first."""
        sentinels, eoss = self.vocab.sentinel_range, self.vocab.eoss
        out = [0.0]
        for (before, id), seen in zip(pairwise(layout.ids), clean_T[1:], strict=True):
            idle = id in sentinels or id != seen or before == id == eoss
            out.append(0.0 if idle else self.causal_weight * self._inner._factor(id))
        return out


def _behind(page: Sequence[int], bodies: Sequence[Sequence[int]], vocab: Vocab) -> Layout:
    """A page and the contents of its gaps, each after its sentinel, and before `<eoss>` unless it ends with one."""
    out, hidden, answers = list(page), [False] * len(page), []
    for number, body in enumerate(bodies):
        start = len(out) + 1
        ending = [] if body[-1] == vocab.eoss else [vocab.eoss]
        out += [vocab.sentinel(number), *body, *ending]
        hidden += [False, *[True] * len(body), *[False] * len(ending)]
        answers.append(Span(start, start + len(body)))
    return Layout(out, hidden, tuple(answers))
