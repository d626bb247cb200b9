"""Settings of training objectives, and exercises side by side in rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from cm3kit.config import Settings
from cm3kit.decoders.settings import DecoderName
from cm3kit.objectives import (
    PRESETS,
    BlockDiffusion,
    CausalBlocks,
    CausalMask,
    Hybrid,
    MaskedDiffusion,
    NextToken,
)
from cm3kit.objectives.gaps import GapLaw
from cm3kit.objectives.hints import HintLaw, SizeHints
from cm3kit.pipelines.trained import Trained
from cm3kit.types import Exercise, Objective
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab

# Decoders that an objective trains, that which it is for first; where nothing is said, to write in place.
USES: dict[str, tuple[DecoderName, ...]] = {
    "hybrid": ("cm3", "diffusion"),
    "causal-blocks": ("diffusion", "cm3"),
}
Name = Literal["cm3", "next-token", "masked-diffusion", "block-diffusion", "causal-blocks", "hybrid"]


class DiffusionSettings(Settings):
    """See `objectives.MaskedDiffusion`; `block_size`, `low` and `high` are those of `BlockDiffusion`, and
    `causal_weight` is that of `CausalBlocks`.
    """

    schedule: str = "linear"
    weighting: Literal["bound", "flat"] = "bound"
    snr_cap: float | None = Field(None, gt=0)
    norm: Literal["token", "sequence", "batch"] = "token"
    hides: Literal["gaps", "all"] = "gaps"
    law: GapLaw = GapLaw()
    text_weight: float = Field(1.0, ge=0)
    image_weight: float = Field(1.0, ge=0)
    drop: float = Field(0.1, ge=0, le=1)
    modality: float = Field(0.0, ge=0, le=1)
    pairs: bool = False
    ends: int | None = Field(None, ge=1)
    ordered: float = Field(0.0, ge=0, le=1)
    ahead: int = Field(16, ge=1)
    shift: bool = False
    block_size: int = Field(16, ge=1)
    low: float = Field(1e-3, ge=0, lt=1)
    high: float = Field(1.0, gt=0, le=1)
    causal_weight: float = Field(1.0, ge=0)


class ObjectiveSettings(Settings):
    """What is asked in training.

    `preset` names the causal masking, and `p_ar` replaces its share of documents without a span; `hints` tell the
    sizes of its spans; `share` is that of causal masking in `hybrid`.
    """

    name: Name = "cm3"
    preset: str = "recommended"
    p_ar: float | None = Field(None, ge=0, le=1)
    hints: HintLaw = HintLaw()
    diffusion: DiffusionSettings = DiffusionSettings()
    share: float = Field(0.5, ge=0, le=1)


def make_objective(
    settings: ObjectiveSettings, vocab: Vocab, text: TextTokenizer, grid: tuple[int, int]
) -> Objective:
    """The objective that settings name; ConfigError for an unknown preset or schedule."""
    continues = tuple(text.continues)
    if settings.name == "next-token":
        return NextToken(vocab, continues, grid[0] * grid[1])
    preset = PRESETS[settings.preset]
    if settings.p_ar is not None:
        preset = replace(preset, p_ar=settings.p_ar)
    hints = SizeHints.of(vocab, text, settings.hints) if settings.hints.share else None
    causal = CausalMask(vocab, preset, continues=continues, grid=grid, hints=hints)
    if settings.name == "cm3":
        return causal
    chosen = settings.diffusion.model_dump(exclude={"law", "block_size", "low", "high", "causal_weight"})
    masked = MaskedDiffusion(vocab, law=settings.diffusion.law, continues=continues, grid=grid, **chosen)
    if settings.name == "masked-diffusion":
        return masked
    how = settings.diffusion
    if settings.name == "block-diffusion":
        return BlockDiffusion(vocab, how.block_size, how.low, how.high, masked)
    if settings.name == "causal-blocks":
        return CausalBlocks(vocab, how.block_size, how.low, how.high, masked, how.causal_weight)
    return Hybrid(causal, masked, settings.share)


def trained_as(settings: ObjectiveSettings, window: int) -> Trained:
    """Which decoders a model can be used by that was trained with an objective in rows of a length, and how."""
    how, blocks = settings.diffusion, settings.name in ("block-diffusion", "causal-blocks")
    behind = settings.name == "causal-blocks"
    told = settings.name in ("cm3", "hybrid") and settings.hints.share > 0
    if settings.name in ("cm3", "next-token"):
        return Trained(window=window, hints=told)
    return Trained(
        window=window // 2 if blocks else window,  # where a row holds each page twice
        decoders=USES.get(settings.name, ("diffusion",)),
        shift=behind or (how.shift and not blocks),
        trained_block=how.block_size if blocks else None,
        layout="behind" if behind else "page",
        hints=told,
    )


class Packed(NamedTuple):
    """Exercises side by side in rows; `documents_BT` numbers them from 1, 0 is padding.

    `targets_BT[b, t]` is what the model is to say at t, and weighs `weights_BT[b, t]`. `mass` divides the loss.
    """

    ids_BT: Tensor
    targets_BT: Tensor
    weights_BT: Tensor
    documents_BT: Tensor
    blocks_BT: Tensor
    noisy_BT: Tensor
    places_BT: Tensor
    times_BT: Tensor
    mass: Tensor


def pack(exercises: list[Exercise], rows: int, window: int) -> Packed:
    """Place each exercise in the first row with room; those that fit nowhere are left out."""
    ids_BT, targets_BT, documents_BT, blocks_BT, places_BT = (
        torch.zeros(rows, window, dtype=torch.long) for _ in range(5)
    )
    weights_BT, times_BT = torch.zeros(rows, window), torch.zeros(rows, window)
    noisy_BT = torch.zeros(rows, window, dtype=torch.bool)
    used, mass = [0] * rows, 0.0
    for number, each in enumerate(exercises, 1):
        size = len(each.ids)
        row = next((row for row in range(rows) if used[row] + size <= window), None)
        if row is None:
            continue
        place = slice(used[row], used[row] + size)
        used[row] += size
        inside = torch.arange(size)
        ids_BT[row, place] = torch.tensor(each.inputs or each.ids)
        targets_BT[row, place], weights_BT[row, place] = _aligned(each)
        documents_BT[row, place] = number
        blocks_BT[row, place] = inside if each.blocks is None else torch.tensor(each.blocks)
        noisy_BT[row, place] = each.noisy is not None and torch.tensor(each.noisy)
        places_BT[row, place] = inside if each.places is None else torch.tensor(each.places)
        times_BT[row, place] = torch.as_tensor(each.time)
        mass += float(weights_BT[row, place].sum()) if each.mass is None else each.mass
    return Packed(
        ids_BT, targets_BT, weights_BT, documents_BT, blocks_BT, noisy_BT, places_BT, times_BT, torch.tensor(mass)
    )  # fmt: skip


def _aligned(each: Exercise) -> tuple[Tensor, Tensor]:
    """What is to be said at each place: the id there, or with `shift` the one after it."""
    ids, weights = torch.tensor(each.ids), torch.tensor(each.weights)
    if not each.shift:
        return ids, weights
    # Nothing before a document's first id predicts it, and nothing is to be said at its last place.
    return ids.roll(-1), torch.cat([weights[1:], weights.new_zeros(1)])
