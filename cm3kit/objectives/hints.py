"""Size hints: the approximate length of a masked span after its sentinel (arXiv:2107.06955, sec. 2.3).

    <eod> D0 <mask:0> 1 2 <reserved:0> D1 <eod> <mask:0> S0 <eoss>

HTLM writes only the number. Here every digit is an id, and one more id ends the hint, so that a number in the page
after a gap is not mistaken for a hint, and the page can be recovered from its example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Generator

from cm3kit.config import Settings
from cm3kit.types import Example
from cm3kit_tokenizers.document import MOST_SIZE, Gap
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab

WIDTH = len(str(MOST_SIZE)) + 1
"""Largest number of ids of a hint."""


class HintLaw(Settings):
    """Distribution of hints; `HTLM` is that of the paper.

    Attributes:
        share: of masked spans with a hint; 0 writes no hints.
        noise: standard deviation of the hint, as a share of the size.
    """

    share: float = Field(0.0, ge=0, le=1)
    noise: float = Field(0.1, ge=0, le=1)


HTLM = HintLaw(share=0.8, noise=0.1)


@dataclass(frozen=True)
class SizeHints:
    """Writes and removes hints; `digits` are the ids of 0 … 9."""

    vocab: Vocab
    digits: tuple[int, ...]
    law: HintLaw

    @classmethod
    def of(cls, vocab: Vocab, text: TextTokenizer, law: HintLaw = HTLM) -> SizeHints:
        """Hints with the digits of a text tokenizer, which has all 256 bytes."""
        digits = tuple(text.encode(str(digit), vocab.text.start)[0] for digit in range(10))
        return cls(vocab, digits, law)

    def ids(self, size: int) -> list[int]:
        """A size as a hint, clipped to `MOST_SIZE`."""
        return [*(self.digits[int(digit)] for digit in str(min(size, MOST_SIZE))), self.vocab.hint]

    def behind(self, gap: Gap) -> list[int]:
        """The ids after the sentinel of a gap: a hint if the gap has a requested size and is not a picture's."""
        return [] if gap.size is None or gap.kind == "image" else self.ids(gap.size)

    def draw(self, sizes: Sequence[int], rng: Generator) -> list[int | None]:
        """max(1, floor(m + N(0, m · noise))) for a share of the sizes m, None for the others."""
        told_N = torch.rand(len(sizes), generator=rng, dtype=torch.float64)
        error_N = torch.randn(len(sizes), generator=rng, dtype=torch.float64)
        return [
            max(1, math.floor(size * (1 + self.law.noise * error))) if told < self.law.share else None
            for size, told, error in zip(sizes, told_N.tolist(), error_N.tolist(), strict=True)
        ]

    def put_in(self, example: Example, hidden: Sequence[Sequence[int]], base: int, rng: Generator) -> Example:
        """The example with hints after sentinels of the page, with weight 0, as decoders never write hints.

        Args:
            example: in the layout of causal masking.
            hidden: the ids of each span; the first span has sentinel `base`.
        """
        image = self.vocab.image
        sizes = [0 if all(id in image for id in span) else len(span) for span in hidden]
        told = self.draw(sizes, rng)
        hints = {
            self.vocab.sentinel(base + index): self.ids(size)
            for index, size in enumerate(told)
            if size is not None and sizes[index]
        }
        ids: list[int] = []
        weights: list[float] = []
        for id, weight in zip(example.ids, example.weights, strict=True):
            # The second occurrence of a sentinel, after the page, has no hint.
            hint = hints.pop(id, [])
            ids += [id, *hint]
            weights += [weight, *[0.0] * len(hint)]
        return replace(example, ids=ids, weights=weights)

    def without(self, ids: Sequence[int]) -> list[int]:
        """Ids of a page without its hints."""
        out: list[int] = []
        for id in ids:
            if id != self.vocab.hint:
                out.append(id)
                continue
            while out and out[-1] in self.digits:
                out.pop()
        return out
