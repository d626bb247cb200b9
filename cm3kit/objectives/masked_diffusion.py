"""Masked diffusion: mask ids of a page at a random noise level, and predict all of them at once.

MDLM (arXiv:2406.07524), LLaDA (arXiv:2502.09992), UniDisc (arXiv:2503.20853) and MeDiM (arXiv:2510.06131) on
pages. The negative evidence lower bound weights masked ids by −α'(t) / (1 − α(t)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Generator

from cm3kit.config import RenamedSettings
from cm3kit.objectives.contract import Objective, ObjectiveSettings, TokenizerParts, Use
from cm3kit.objectives.gaps import GapLaw, Layout, draw_gaps, lay_out
from cm3kit.objectives.noise import Noise, schedule, times
from cm3kit.objectives.units import cuts, too_small, window
from cm3kit.registry import objective
from cm3kit.types import Example, Span
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab

Weighting = Literal["elbo", "uniform"]
Norm = Literal["token", "sequence", "batch"]
LAW = GapLaw()


class DiffusionSettings(RenamedSettings):
    """See `MaskedDiffusion`."""

    renamed: ClassVar[Mapping[str, str]] = {
        "drop": "cond_dropout", "modality": "modality_dropout", "pairs": "complementary_masks",
    }  # fmt: skip
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "weighting": {"bound": "elbo", "flat": "uniform"}
    }

    schedule: str = "linear"
    weighting: Literal["elbo", "uniform"] = "elbo"
    snr_cap: float | None = Field(None, gt=0)
    norm: Literal["token", "sequence", "batch"] = "token"
    hides: Literal["gaps", "all"] = "gaps"
    law: GapLaw = GapLaw()
    text_weight: float = Field(1.0, ge=0)
    image_weight: float = Field(1.0, ge=0)
    cond_dropout: float = Field(0.1, ge=0, le=1)
    modality_dropout: float = Field(0.0, ge=0, le=1)
    complementary_masks: bool = False
    ends: int | None = Field(None, ge=1)
    ordered: float = Field(0.0, ge=0, le=1)
    ahead: int = Field(16, ge=1)
    shift: bool = False


class MaskedDiffusionSettings(ObjectiveSettings):
    """Settings of masking and loss weights."""

    name: str = "masked-diffusion"
    diffusion: DiffusionSettings = DiffusionSettings()


@objective("masked-diffusion")
@dataclass(frozen=True)
class MaskedDiffusion:
    """Absorbing-state diffusion on pages.

    Args:
        schedule: of the noise; see `noise.schedule`.
        weighting: of masked ids: by the evidence lower bound, or uniform (MaskGIT, arXiv:2202.04200, eq. 1).
        snr_cap: γ of the softly capped weight, or None.
        norm: divisor of the loss: ids that can be masked (uniform: masked ids), sequences with each divided by its own
            ids, or sequences.
        hides: mask only gaps drawn by `law`, with the rest given and never noised; or every id of the page.
        text_weight: factor on ids that are not image codes, and `image_weight` on image codes.
        cond_dropout: probability that all given text and pictures of a page are masked without a loss, for guidance.
        modality_dropout: probability that one modality of a page's gaps is masked completely and has no loss.
        complementary_masks: two examples per page, each id masked in exactly one of them.
        ends: number of `<eoss>` of a gap that have a loss; None is all.
        ordered: share of pages that are masked from the right, as in the states of a decoder that fills from left to
            right, in blocks or id by id; a model that starts from a causal one keeps that ability, which it forgets
            otherwise. On these pages the first `ahead` masked ids have a loss, the k-th weighted by 1 / k.
        shift: predict an id at the position before it (Dream, DiffuCoder), as causal models do.
        continues: for each text id, whether it starts inside a UTF-8 character.
        grid: (rows, columns) of a picture's codes.

    Raises:
        ConfigError: the schedule is unknown, or both `complementary_masks` and `ordered` are set.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = MaskedDiffusionSettings
    masks: ClassVar[bool] = True

    vocab: Vocab
    schedule: str = "linear"
    weighting: Weighting = "elbo"
    snr_cap: float | None = None
    norm: Norm = "token"
    hides: Literal["gaps", "all"] = "gaps"
    law: GapLaw = LAW
    text_weight: float = 1.0
    image_weight: float = 1.0
    cond_dropout: float = 0.0
    modality_dropout: float = 0.0
    complementary_masks: bool = False
    ends: int | None = None
    ordered: float = 0.0
    ahead: int = 16
    shift: bool = False
    continues: Sequence[bool] | None = None
    grid: tuple[int, int] | None = None
    _noise: Noise = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_noise", schedule[self.schedule])
        if self.complementary_masks and self.ordered:
            raise ConfigError(
                "complementary_masks and ordered: a page that is masked from the right has no complement;"
                " omit one of them.",
                code="bad_config",
            )

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """The objective from settings whose `diffusion` has the fields of `DiffusionSettings`."""
        chosen = {name: getattr(settings.diffusion, name) for name in DiffusionSettings.model_fields}
        return cls(parts.vocab, continues=parts.continues, grid=parts.grid, **chosen)

    @property
    def copies(self) -> int:
        """Two with complementary masks."""
        return 2 if self.complementary_masks else 1

    def uses(self, window: int) -> tuple[Use, ...]:
        """Infill in place, with bidirectional attention."""
        asked = {"name": "masked-diffusion", "diffusion": {"shift": self.shift}}
        return (
            Use(
                decoder="diffusion", layout="in-place", attention="full", window=window, shift=self.shift,
                objective=asked,
            ),
        )  # fmt: skip

    def validation(self) -> Mapping[str, Objective]:
        """The evidence lower bound."""
        return {"bound_": self.exact()}

    def exact(self) -> MaskedDiffusion:
        """The same masking without training's loss weights and dropouts."""
        return replace(
            self, weighting="elbo", snr_cap=None, norm="token", text_weight=1.0, image_weight=1.0,
            cond_dropout=0.0, modality_dropout=0.0, complementary_masks=False, ends=None, ordered=0.0,
        )  # fmt: skip

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """Mask ids of each document, at times spread evenly over the documents."""
        drawn = times(len(documents), rng)
        return [
            each
            for ids, t in zip(documents, drawn, strict=True)
            for each in self.make_example(ids, t, rng, budget)
        ]

    def make_example(self, ids: Sequence[int], t: float, rng: Generator, budget: int) -> list[Example]:
        """One document at time t, and with `complementary_masks` a second example with the complementary mask.

        Raises:
            ConfigError: `budget` is under 3, or the only picture of a document does not fit into it.
        """
        layout = self.lay_out(ids, rng, budget)
        if self.ordered and float(torch.rand((), generator=rng, dtype=torch.float64)) < self.ordered:
            return [self._from_the_right(layout, t, rng)]
        odds_T = torch.rand(len(layout.ids), generator=rng, dtype=torch.float64)
        alpha = self._noise.alpha(t)
        hidden = [gap and odd < 1 - alpha for gap, odd in zip(layout.hidden, odds_T.tolist(), strict=True)]
        whole, unseen = self._whole(layout, rng)
        out = [self._ask(layout, hidden, 1 - alpha, self._weight(t), whole, unseen)]
        if self.complementary_masks:
            rest = [gap and not now for gap, now in zip(layout.hidden, hidden, strict=True)]
            out.append(self._ask(layout, rest, alpha, self._rest_weight(t), whole, unseen))
        return out

    def _from_the_right(self, layout: Layout, t: float, rng: Generator) -> Example:
        """The document with the last share t of its gaps' ids masked; the first of these have a loss."""
        whole, unseen = self._whole(layout, rng)
        inputs, asked = self.shown(layout, whole, unseen)
        slots = [place for place, ask in enumerate(asked) if ask]
        hidden = slots[int((1 - t) * len(slots)) :]
        scored, weights = self.scored(layout), [0.0] * len(layout.ids)
        for place in hidden:
            inputs[place] = self.vocab.mask
        near = hidden[: self.ahead]
        # The first is the next to be written; the weights 1, 1/2, 1/3 … are scaled to a mean of 1.
        scale = len(near) / max(1.0, sum(1 / number for number in range(1, len(near) + 1)))
        for number, place in enumerate(near, 1):
            share = scale / number / (len(near) if self.norm == "sequence" else 1)
            weights[place] = share * self._factor(layout.ids[place]) if scored[place] else 0.0
        return self._example(layout, inputs, weights, t, float(len(near)) if self.norm == "token" else 1.0)

    def lay_out(self, ids: Sequence[int], rng: Generator, budget: int) -> Layout:
        """The document between two `<eod>`, with its gaps; or a slice with `<eod>` only at an end of the document."""
        part: Span | None = Span(0, len(ids))
        if len(ids) > budget - 2:
            where = float(torch.rand((), generator=rng, dtype=torch.float64))
            part = window(cuts(ids, self.vocab, self.continues), budget - 2, where) if budget > 2 else None
        if part is None or not ids:
            raise too_small(budget)
        opening = [self.vocab.eod] if part.start == 0 else []
        closing = [self.vocab.eod] if part.stop == len(ids) else []
        inside = ids[part.start : part.stop]
        if self.hides == "all":
            layout = Layout(list(inside), [True] * len(inside), ())
        else:
            gaps = draw_gaps(inside, self.law, self.vocab, self.grid, self.continues, rng)
            layout = lay_out(inside, gaps, self.law, self.vocab, budget - 2 - len(inside), rng)
        first = len(opening)
        return Layout(
            [*opening, *layout.ids, *closing],
            [*[False] * first, *layout.hidden, *[False] * len(closing)],
            tuple(Span(each.start + first, each.stop + first) for each in layout.answers),
        )

    def _whole(self, layout: Layout, rng: Generator) -> tuple[Callable[[int], bool], bool]:
        """Predicate of permanently masked ids of gaps, and whether given ids are masked."""
        draws = torch.rand(3, generator=rng, dtype=torch.float64).tolist()
        start = self.vocab.image.start
        if draws[0] < self.modality_dropout:
            images = draws[1] < 0.5
            return (lambda id: (id >= start) == images), draws[2] < self.cond_dropout
        return (lambda id: False), draws[2] < self.cond_dropout

    def _ask(
        self,
        layout: Layout,
        hidden: list[bool],
        noise: float,
        level: float,
        whole: Callable[[int], bool],
        unseen: bool,
    ) -> Example:
        """Mask these positions with weight `level` each; `noise` is the expected share of masked ones."""
        inputs, asked = self.shown(layout, whole, unseen)
        weights, scored = [0.0] * len(layout.ids), self.scored(layout)
        now = [ask and hide for ask, hide in zip(asked, hidden, strict=True)]
        for place, id in enumerate(layout.ids):
            if now[place]:
                inputs[place] = self.vocab.mask
                weights[place] = level * self._factor(id) if scored[place] else 0.0
        maskable = sum(asked)
        if self.norm == "sequence" and maskable:
            weights = [each / maskable for each in weights]
        mass = float(sum(now) if self.weighting == "uniform" else maskable) if self.norm == "token" else 1.0
        return self._example(layout, inputs, weights, noise, mass)

    def shown(
        self, layout: Layout, whole: Callable[[int], bool], unseen: bool
    ) -> tuple[list[int], list[bool]]:
        """The page before noise, with permanently masked ids, and the positions that may have a loss."""
        ids, asked = list(layout.ids), list(layout.hidden)
        for place, (id, gap) in enumerate(zip(layout.ids, layout.hidden, strict=True)):
            if whole(id) if gap else unseen and id >= self.vocab.text.start:
                ids[place], asked[place] = self.vocab.mask, False
        return ids, asked

    def scored(self, layout: Layout) -> list[bool]:
        """Positions of gaps that have a loss when masked: all but the `<eoss>` after the first `ends`."""
        out, run = [], 0
        for id, gap in zip(layout.ids, layout.hidden, strict=True):
            run = run + 1 if gap and id == self.vocab.eoss else 0
            out.append(gap and (self.ends is None or run <= self.ends))
        return out

    def _example(
        self, layout: Layout, inputs: list[int], weights: list[float], noise: float, mass: float
    ) -> Example:
        size = len(layout.ids)
        return Example(
            layout.ids, weights, layout.answers, inputs, [0] * size, [True] * size,
            time=noise, shift=self.shift, mass=mass,
        )  # fmt: skip

    def _weight(self, t: float) -> float:
        return 1.0 if self.weighting == "uniform" else self._noise.weight(t, self.snr_cap)

    def _rest_weight(self, t: float) -> float:
        return 1.0 if self.weighting == "uniform" else self._noise.rest_weight(t, self.snr_cap)

    def _factor(self, id: int) -> float:
        return self.image_weight if id >= self.vocab.image.start else self.text_weight
