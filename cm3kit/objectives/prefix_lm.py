"""Prefix language modelling: bidirectional attention in a prefix of the page, causal attention after it.

The non-causal decoder of arXiv:2204.05832, sec. 3.1 (T5's prefix LM, arXiv:1910.10683, sec. 3.2.4). No id is masked:
the prefix is one block of attention, and every id after it a block of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Generator

from cm3kit.objectives.contract import Objective, ObjectiveSettings, TokenizerParts, Use
from cm3kit.objectives.next_token import NextToken
from cm3kit.registry import objective
from cm3kit.types import Example
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab


class PrefixLMSettings(ObjectiveSettings):
    """The prefix is a share of the page drawn from [`least`, `most`)."""

    name: str = "prefix-lm"
    least: float = Field(0.0, ge=0, le=1)
    most: float = Field(1.0, ge=0, le=1)


@objective("prefix-lm")
@dataclass(frozen=True)
class PrefixLM:
    """Predicts the ids after a bidirectional prefix.

    Args:
        continues: for each text id, whether it starts inside a UTF-8 character; no slice starts or stops before one.
        least: smallest share of the prefix in the page, and `most` the largest.

    Raises:
        ConfigError: `least` is above `most`.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = PrefixLMSettings
    copies: ClassVar[int] = 1
    masks: ClassVar[bool] = False

    vocab: Vocab
    continues: Sequence[bool] | None = None
    least: float = 0.0
    most: float = 1.0

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ConfigError(f"least = {self.least} is above most = {self.most}.", code="bad_config")

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """See `Objective`."""
        return cls(parts.vocab, parts.continues, settings.least, settings.most)

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """`<eod> ids <eod>` of each document, or a slice, with one prefix each."""
        plain = NextToken(self.vocab, self.continues)
        return [self._with_prefix(plain.make_example(ids, rng, budget), rng) for ids in documents]

    def _with_prefix(self, example: Example, rng: Generator) -> Example:
        size = len(example.ids)
        share = self.least + (self.most - self.least) * float(
            torch.rand((), generator=rng, dtype=torch.float64)
        )
        # At least one id is in the prefix, and at least one is predicted.
        prefix = min(max(1, int(share * size)), max(1, size - 1))
        weights = [0.0] * prefix + [1.0] * (size - prefix)
        blocks = [0] * prefix + list(range(1, size - prefix + 1))
        return Example(example.ids, weights, blocks=blocks, noisy=[False] * size)

    def uses(self, window: int) -> tuple[Use, ...]:
        """Continuation from left to right, with bidirectional attention in the prompt."""
        asked = {"name": "prefix-lm", "least": self.least, "most": self.most}
        return (Use(layout="continue", attention="full", window=window, objective=asked),)

    def validation(self) -> Mapping[str, Objective]:
        """The ids after prefixes."""
        return {"prefix_": self}
