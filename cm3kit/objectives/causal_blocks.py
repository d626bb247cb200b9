"""Causal masking and block diffusion in one pass: what cm3 moves behind the page is also written block by block.

A row holds the open slots of the gaps, noised in blocks, and then the page as cm3 lays it out, clean and causal:

    B0 B1 … | <eod> D0 <mask:0> D1 <eod> <mask:0> B0 B1 … <eoss>

A noised block sees itself and everything clean before it, so that its first slot is scored by the causal model, and
the others by the places before them (token shift). One set of weights learns both: the causal decoder is kept, or
made, while the other learns to write several slots at once (Fast-dLLM v2, arXiv:2509.26328, sec. 3, whose clean
copy looks both ways inside a block; SDAR, arXiv:2510.06303). In use finished blocks are stored as a causal model's.
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

# A page that is sliced leaves room for so many gaps, each of which adds its sentinel twice and an end.
GAPS = 6


class CausalBlockSettings(BlockSettings):
    """Those of block diffusion, and `causal_weight` of `CausalBlocks`."""

    causal_weight: float = Field(1.0, ge=0)


class CausalBlocksSettings(ObjectiveSettings):
    """What is masked, in which blocks, and how it weighs."""

    name: str = "causal-blocks"
    diffusion: CausalBlockSettings = CausalBlockSettings()


@objective("causal-blocks")
@dataclass(frozen=True)
class CausalBlocks:
    """Gaps moved behind the page as `CausalMask` does, written from left to right and in blocks.

    Args:
        block_size: slots of a block; each gap begins one of its own.
        low: times of blocks are drawn from [low, high).
        inner: what is hidden and how it weighs.
        causal_weight: of the ids of the clean copy, which the causal model is asked for, times that of their modality.

    Raises:
        ConfigError: `block_size` is under 1, `low` and `high` are not in order in [0, 1], or `inner` hides whole
            pages or is `ordered`.
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
                "causal-blocks hides gaps, each block at a time of its own; leave out hides = all and ordered.",
                code="bad_config",
            )
        object.__setattr__(self, "_inner", replace(inner, shift=True))

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """See `Objective`."""
        how, inner = settings.diffusion, MaskedDiffusion.build(settings, parts)
        return cls(parts.vocab, how.block_size, how.low, how.high, inner, how.causal_weight)

    def uses(self, window: int) -> tuple[Use, ...]:
        """Behind the page: block by block, or from left to right."""
        asked = {"name": "causal-blocks", "diffusion": {"block_size": self.block_size, "shift": True}}
        return (
            Use(
                decoder="diffusion", attention="full", window=window // 2, shift=True, block_size=self.block_size,
                cache="causal", objective=asked,
            ),
            Use(window=window // 2, objective={"name": "cm3"}),
        )  # fmt: skip

    def validation(self) -> Mapping[str, Objective]:
        """The page as it stands, and the evidence bound."""
        inner = None if self.inner is None else self.inner.exact()
        blocks = CausalBlocks(self.vocab, self.block_size, inner=inner, causal_weight=0.0)
        return {"": NextToken(self.vocab, self._inner.continues), "bound_": blocks}

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """The examples of each document."""
        return [each for ids in documents for each in self.make_example(ids, rng, budget)]

    def make_example(self, ids: Sequence[int], rng: Generator, budget: int) -> list[Example]:
        """One document, or a slice, in at most `budget` ids: the blocks of its gaps, and the row of cm3.

        With `inner.complementary_masks` a second example hides in every block what the first one shows.

        Raises:
            ConfigError: half of `budget` is too little for a slice, or for a picture that is all there is.
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
        """The row of cm3 in at most `budget` ids; `hidden` are the slots of its gaps."""
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
        """Hide these slots where they may be asked for; the first one of a block is scored in the clean copy."""
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
        """Weights of the clean copy: none for sentinels, what is hidden for good, and ends behind the first."""
        sentinels, eoss = self.vocab.sentinel_range, self.vocab.eoss
        out = [0.0]
        for (before, id), seen in zip(pairwise(layout.ids), clean_T[1:], strict=True):
            idle = id in sentinels or id != seen or before == id == eoss
            out.append(0.0 if idle else self.causal_weight * self._inner._factor(id))
        return out


def _behind(page: Sequence[int], bodies: Sequence[Sequence[int]], vocab: Vocab) -> Layout:
    """A page and what its gaps hold, each behind its sentinel, and before `<eoss>` unless its slots end so."""
    out, hidden, answers = list(page), [False] * len(page), []
    for number, body in enumerate(bodies):
        start = len(out) + 1
        ending = [] if body[-1] == vocab.eoss else [vocab.eoss]
        out += [vocab.sentinel(number), *body, *ending]
        hidden += [False, *[True] * len(body), *[False] * len(ending)]
        answers.append(Span(start, start + len(body)))
    return Layout(out, hidden, tuple(answers))
