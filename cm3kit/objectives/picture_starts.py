"""Causal masking, and the first codes of pictures behind their words.

Which picture words mean is settled by its first two or three codes: those are the only ones that a model which has seen
a picture often cannot tell from the codes before them. They are three ids of a page of eighty, so that a name of many
pictures is bound to them last. A share of the pages ends here behind the first `codes` of its first picture, and only
those count; a page takes a quarter of the ids then, and every name comes up four times as often.

Words behind a picture are as few among its codes. Of another share of the pages one text moves behind the page, as in
causal masking, and alone counts: an alt text, a caption, a title, a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Generator

from cm3kit.objectives.causal_mask import CausalMask, CausalMaskSettings, halves
from cm3kit.objectives.contract import Objective, ObjectiveSettings, TokenizerParts, Use
from cm3kit.objectives.units import runs, units
from cm3kit.registry import objective
from cm3kit.types import Example, Span
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab


class PictureStartsSettings(CausalMaskSettings):
    """Those of causal masking; the `share` of pages that end in a picture, behind how many of its `codes`, and `texts`.

    `texts` is the share of pages of which one text alone counts.
    """

    name: str = "picture-starts"
    share: float = Field(0.75, ge=0, le=1)
    codes: int = Field(12, ge=1)
    texts: float = Field(0.0, ge=0, le=1)


@objective("picture-starts")
@dataclass(frozen=True)
class PictureStarts:
    """The beginning of a picture behind its words, one text of a page, or `inner`, each for its share of the pages.

    A page without a picture, or without a text, or where that does not fit, goes to `inner`.

    Raises:
        ConfigError: `share` or `texts` is outside [0, 1], or both are over 1 together, or `codes` is under 1.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = PictureStartsSettings
    copies: ClassVar[int] = 1
    masks: ClassVar[bool] = False

    inner: CausalMask
    vocab: Vocab
    share: float = 0.75
    codes: int = 12
    texts: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share = {self.share}: give a value from 0 to 1.", code="bad_config")
        if not 0 <= self.texts <= 1 - self.share:
            raise ConfigError(
                f"texts = {self.texts}: give a value from 0 to 1 - share, which is {1 - self.share:g}.",
                code="bad_config",
            )
        if self.codes < 1:
            raise ConfigError(f"codes = {self.codes}: give 1 or more.", code="bad_config")

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """See `Objective`."""
        inner = CausalMask.build(settings, parts)
        return cls(inner, parts.vocab, settings.share, settings.codes, settings.texts)

    def uses(self, window: int) -> tuple[Use, ...]:
        """Those of causal masking."""
        return self.inner.uses(window)

    def validation(self) -> Mapping[str, Objective]:
        """That of causal masking."""
        return self.inner.validation()

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """One example of each document, in their order."""
        chosen = torch.rand(len(documents), generator=rng, dtype=torch.float64).tolist()
        return [
            self._of(ids, draw, budget) or self.inner.make_example(ids, rng, budget)
            for ids, draw in zip(documents, chosen, strict=True)
        ]

    def _of(self, ids: Sequence[int], draw: float, budget: int) -> Example | None:
        if draw < self.share:
            return self.start_of(ids, budget)
        if draw < self.share + self.texts:
            return self.text_of(ids, budget, (draw - self.share) / self.texts)
        return None

    def start_of(self, ids: Sequence[int], budget: int) -> Example | None:
        """`<eod>`, the words of the first picture, and its first codes, which alone count.

        Words behind the picture come before it as in causal masking: the picture moves behind the page. Which
        side has the words is told by its length.

        Returns:
            None for a page without a picture, or one whose words do not fit into `budget` ids.
        """
        vocab = self.vocab
        picture = next(iter(runs(ids, vocab.image)), None)
        if picture is None:
            return None
        codes = [*ids[picture.start : picture.stop][: self.codes]]
        before = ids[: picture.start]
        behind = next((run.start for run in runs(ids[picture.stop :], vocab.image)), len(ids) - picture.stop)
        if len(before) >= behind:
            words = [vocab.eod, *before]
        else:
            whole = ids[: picture.stop + behind]
            page, moved = halves(whole, [Span(picture.start, picture.stop)], vocab)
            words = [vocab.eod, *page, *([vocab.eod] if len(whole) == len(ids) else []), moved[0]]
        if len(words) + len(codes) > budget:
            return None
        return Example([*words, *codes], [*[0.0] * len(words), *[1.0] * len(codes)])

    def text_of(self, ids: Sequence[int], budget: int, draw: float) -> Example | None:
        """A page with one of its texts behind it, which alone counts, with its end.

        Args:
            draw: which of the attribute values and contents of elements that are words, in [0, 1).

        Returns:
            None for a page without one, or that does not fit into `budget` ids.
        """
        vocab = self.vocab
        found = units(ids, vocab, self.inner.continues)
        words = [
            span
            for span in (*found.values, *found.elements)
            if all(id in vocab.text for id in ids[span.start : span.stop])
        ]
        if not words or len(ids) + 5 > budget:
            return None
        page, moved = halves(ids, [words[int(draw * len(words))]], vocab)
        seen = [vocab.eod, *page, vocab.eod, moved[0]]
        return Example([*seen, *moved[1:]], [*[0.0] * len(seen), *[1.0] * (len(moved) - 1)])
