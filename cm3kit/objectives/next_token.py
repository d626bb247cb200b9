"""Plain left-to-right language modelling: the page as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from cm3kit.objectives.units import cuts, gaps_in, too_small, window
from cm3kit.registry import objective
from cm3kit.types import Blank, BlankKind, Exercise, Fill, Posed, Row, Span
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import ConfigError, PageError
from cm3kit_tokenizers.vocab import Vocab

# Longest continuation of a page, if the caller names no limit.
MAX_TOKENS = 1024


@objective("next-token")
@dataclass(frozen=True)
class NextToken:
    """Hides nothing; fills one gap at the end of a page.

    Args:
        continues: for each text id, whether it starts inside a UTF-8 character; no slice starts or
            stops before such an id.
        image_length: codes of a whole picture.
    """

    vocab: Vocab
    continues: Sequence[bool] | None = None
    image_length: int = 0

    @property
    def causal(self) -> bool:
        """The backbone only looks left."""
        return True

    def exercises(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Exercise]:
        """An `exercise` of each document."""
        return [self.exercise(ids, rng, budget) for ids in documents]

    def exercise(self, ids: Sequence[int], rng: Generator, budget: int) -> Exercise:
        """`<eod> ids <eod>`, or a slice that cuts no picture and has `<eod>` only at a true end.

        Raises:
            ConfigError: `budget` is under 3, or a picture that is all there is does not fit into it.
        """
        part: Span | None = Span(0, len(ids))
        if len(ids) > budget - 2:
            where = float(torch.rand((), generator=rng, dtype=torch.float64))
            places = cuts(ids, self.vocab, self.continues)
            part = window(places, budget - 2, where) if budget > 2 else None
        if part is None:
            raise too_small(budget)
        opening = [self.vocab.eod] if part.start == 0 else []
        closing = [self.vocab.eod] if part.stop == len(ids) else []
        out = [*opening, *ids[part.start : part.stop], *closing]
        return Exercise(out, [0.0, *[1.0] * (len(out) - 1)])

    def pose(self, ids: Sequence[int | Gap], max_tokens: int, seed: int) -> Posed:
        """The page up to the gap, to be continued to its end, or by a picture.

        Raises:
            PageError: there is no gap (`no_mask`), or it is not the last thing on the page (`gap_place`).
            ConfigError: a whole picture is asked of a model without pictures.
        """
        known = [each for each in ids if not isinstance(each, Gap)]
        gaps = gaps_in(ids)
        gap = gaps[0]
        if len(gaps) > 1 or not isinstance(ids[-1], Gap) or gap.kind == "attribute":
            raise PageError(
                "a next-token model only continues a page at its end; use a model with objective cm3.",
                code="gap_place",
            )
        length = gap.length or (self.image_length if gap.kind == "image" else None)
        if gap.kind == "image" and not length:
            raise ConfigError("the model writes no pictures; use one with image_length.", code="bad_config")
        kind: BlankKind = "image" if gap.kind == "image" else "document"
        blank = Blank(kind, length or max_tokens or MAX_TOKENS, (), length, gap.index, gap.part)
        return Posed(Row((self.vocab.eod, *known), (blank,), seed=seed), (gap,))

    def read(self, posed: Posed, ids: Sequence[int | Gap], fills: Sequence[Fill]) -> list[int]:
        """The page with what was written behind it; ValueError unless there is one fill."""
        (fill,) = fills
        return [*(each for each in ids if not isinstance(each, Gap)), *fill.ids]
