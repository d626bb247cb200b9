"""How a model is used unless the user says otherwise: `defaults.json` of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from cm3kit.config import Settings
from cm3kit.decoders.diffusion.presets import presets
from cm3kit.decoders.diffusion.settings import CacheName, DiffusionConfig, Eoser
from cm3kit.decoders.settings import DecodeConfig, DecoderName
from cm3kit.fill.styles import ChatTemplate, PictureMarks, PromptStyle
from cm3kit.fill.trained import written_in_place
from cm3kit.renamed import old_names
from cm3kit.types import Attention

DIFFUSION = "diffusion"


class DiffusionDefaults(Settings):
    """How a model writes in any order.

    Attributes:
        image: settings of canvases on which there are only pictures to write, `text` of those with only text, and
            `mixed` of all others.
        shift: whether the model scores each position at the one before it.
        isolated_masks: whether masked positions are seen by themselves alone, as in training.
        trained_block: positions of a block, for a model that was trained block by block.
        trained_cache: the cache that such a training makes exact.
        layout: where answers go; see `layouts`.
        objective: name and settings of the objective that scores it in validation.
    """

    image: DiffusionConfig = presets["cosine"].config(eoser=Eoser())
    text: DiffusionConfig = presets["uniform"].config(eoser=Eoser())
    mixed: DiffusionConfig = presets["uniform"].config(eoser=Eoser())
    shift: bool = False
    isolated_masks: bool = False
    trained_block: int | None = Field(None, ge=1)
    trained_cache: CacheName = "none"
    layout: str = "in-place"
    objective: dict[str, Any] = Field(default_factory=lambda: {"name": "masked-diffusion"})

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "trained_cache" in given:
            return given
        told = written_in_place(given)
        own = {"trained_cache": told["cache"], "objective": told["objective"], "layout": told["layout"]}
        # What is given counts as set, and what follows from that too.
        own = own if {"layout", "trained_block"} & set(given) else {}
        renamed = {"isolated_masks" if key == "unseen" else key: value for key, value in given.items()}
        return {**renamed, **own}


class Defaults(Settings):
    """How a model is used unless the user says otherwise.

    Attributes:
        window: the longest sequence that the decoder was trained on.
        preset: the causal objective's.
        hints: whether the cm3 decoder was trained with size hints, and gets the sizes that pages wish for.
        layout: where the cm3 decoder's answers go, but for pictures and pages from words; see `layouts`.
        prompt_attention: whether the cm3 decoder's known ids look left, or at one another.
        objective: name and settings of the objective that scores the cm3 decoder in validation.
        decoders: those that the model was trained for; the first one writes unless another is asked for.
        image: settings of the cm3 decoder for pictures, and `text` those for words.
        diffusion: settings of the diffusion decoder, where it is one of `decoders`.
        prompt_style: how pages are put to the model; other than minimal for public models of text, whose weights stay
            in the number format of their files.
        chat: how a conversation is written.
        pictures: how a public model writes pictures among words; None of one of words alone.
    """

    window: int = Field(512, ge=16)
    preset: str = "recommended"
    hints: bool = False
    layout: str = "behind"
    prompt_attention: Attention = "causal"
    objective: dict[str, Any] = Field(default_factory=dict)
    decoders: tuple[DecoderName, ...] = Field(("cm3",), min_length=1)
    image: DecodeConfig = DecodeConfig()
    text: DecodeConfig = DecodeConfig()
    diffusion: DiffusionDefaults = DiffusionDefaults()
    prompt_style: PromptStyle = "minimal"
    chat: ChatTemplate | None = None
    pictures: PictureMarks | None = None

    @classmethod
    def of(cls, folder: Path) -> Defaults:
        """Those of a model folder, under whatever names they were written.

        Raises:
            OSError: there is no `defaults.json`.
            ValidationError: it cannot be used.
        """
        with old_names():
            return cls.model_validate_json((folder / "defaults.json").read_text(encoding="utf-8"))

    @model_validator(mode="after")
    def _diffusion_is_used(self) -> Defaults:
        if self.diffusion != DiffusionDefaults() and DIFFUSION not in self.decoders:
            raise ValueError("diffusion is set, but decoders does not name it")
        return self
