"""Settings of the diffusion decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from cm3kit.config import RenamedSettings, Settings
from cm3kit.decode_options import CacheName as CacheName
from cm3kit.decoders.diffusion.axes import Choice
from cm3kit.decoders.settings import Precision, Sampling

# Those that change nothing, of models that were trained in blocks.
EXACT = ("exact", "causal")


class Eoser(Settings):
    """EOS early rejection (arXiv:2509.23924, sec. 3.2): end ids rank lower at first.

    `schedule` moves γ from `least` to `most`: linear in the step, or as 2^(s+1) for ascending steps; `hard` bans
    end ids during this share of the steps instead.
    """

    least: float = Field(0.4, ge=0, le=1)
    most: float = Field(1.0, ge=0, le=1)
    schedule: Literal["linear", "ascending"] = "linear"
    hard: float | None = Field(None, ge=0, le=1)


class DiffusionConfig(RenamedSettings):
    """How a canvas is filled.

    Attributes:
        sampler: by confidence (schedule, order, accept), or one of the samplers of the reverse process.
        steps: steps of a block; None writes one slot a step (schedules that fix their own number ignore it).
        schedule: how many slots a step writes. order: which first. accept: which of the scored ones.
        eoser: damping of end ids in the order; None leaves it.
        modifiers: what may take back or replace what was written.
        confidence: whether the order ranks by the model's distribution, or by the one that ids are drawn from.
        text: sampling of text, markup and end ids. image: sampling of image codes.
        guidance: weight of the condition; 1 guides nothing and costs no second pass.
        guidance_schedule: whether the weight is constant, or grows as 1 + (guidance - 1)(1 - t), where t is the share
            of slots still open (linear), or falls from 1 in equal steps (steps).
        block_size: slots of a block, written left to right; None writes the whole canvas as one block.
        ascending_blocks: write so many blocks from left to right whose sizes ascend as the steps of the schedule
            `ascending` do, each but the first in one step.
        cache: keys and values kept between passes: exact (models trained block-causally), causal (those whose clean
            ids look left, each gap in blocks of its own), or the prefix and
            dual approximations (arXiv:2505.22618).
        early_exit: stop a row once everything before its first end id is written.
        batch_size: rows decoded together; fixed, so that a result does not depend on the other rows.
        precision: number format of the weights in matrix products; auto is by device and model (`decoders.precision`).
    """

    renamed: ClassVar[Mapping[str, str]] = {"quota": "schedule"}

    sampler: Literal["confidence", "ancestral", "first-hitting"] = "confidence"
    steps: int | None = Field(None, ge=1)
    schedule: Choice = "uniform"
    order: Choice = "probability"
    accept: Choice = "top"
    eoser: Eoser | None = None
    modifiers: tuple[Choice, ...] = ()
    confidence: Literal["base", "tempered"] = "base"
    text: Sampling = Sampling(temperature=0)
    image: Sampling = Sampling()
    guidance: float = Field(1.0, ge=0, le=100)
    guidance_schedule: Literal["constant", "linear", "steps"] = "constant"
    block_size: int | None = Field(None, ge=1)
    ascending_blocks: int | None = Field(None, ge=1)
    cache: CacheName = "none"
    early_exit: bool = True
    batch_size: int = Field(default=8, ge=1, le=1024)
    precision: Precision = "fp32"
