"""The settings of `train cm3`, `mdm`, `block` and `hybrid`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from cm3kit.config import RenamedSettings, Settings
from cm3kit.data.views import ViewSettings
from cm3kit.models.backbone import BackboneConfig
from cm3kit.models.lora import LoraSettings
from cm3kit.models.packing import Packing
from cm3kit.objectives.causal_mask import CausalMaskSettings
from cm3kit.objectives.contract import ObjectiveSettings, read_settings
from cm3kit.training.loop import LoopSettings


class WarmStart(Settings):
    """A public decoder to begin with.

    Attributes:
        source: folder or hub id of a causal language model of transformers, whose rows come to lie at our ids; ids that
            it has not seen begin as the mean of its rows.
        text: take its text tokenizer, or keep the recipe's.
    """

    source: str | None = None
    text: Literal["source", "recipe"] = "source"


class DecoderRecipe(RenamedSettings):
    """Everything that training a decoder needs.

    Attributes:
        data: a folder of pages, of token shards (`cm3kit data pack`), or a bundle (`cm3kit data bundle`).
        text: folder of a trained text tokenizer.
        image: folder of an image tokenizer; null is a model of words alone, which reads pages without their pictures.
        views: encodings of each picture, of which a page shows one at a time; a bundle has its own.
        window: length of a packed row.
        backbone_from: a decoder with our ids, a folder or hub id, to start from instead of fresh weights of `backbone`.
        warm: a public decoder to start from instead.
        expand: identity layers that are put between those of what is started from, so that it has room for more
            (`models.expand`).
        lora: train adapters, new rows and the head of what is started from, instead of all of it.
        mask_embedding: where a diffusion objective starts from such weights: the mean of all embeddings, or what it is.
        timestep: width of the embedding of the diffusion time that conditions every layer; None is a model without
            (MeDiM, arXiv:2510.06131, sec. 3.2).
        isolated_masks: masked positions attend to no other and are attended to by none, instead of by all: then what is
            written does not depend on how much is open, and a converted causal model goes on knowing what it knew.
        attention: that of the objective, or causal whatever the objective (MeDiM's ablation).
        anneal: share of the steps over which hidden pages go from causal to full attention.
        packing: how documents side by side in a row are kept apart: by a dense mask, by attention document by document,
            which an objective allows whose documents look left only or at all of themselves, by xformers, likewise, or
            by FlexAttention, which skips blocks without attention; auto takes what is fastest where it is
            (`models.packing`). Annealed masks, drawn pair by pair, and those of validation and previews are dense.
        previews: prompts that previews draw; None takes words of held-out pages: what pictures are called, and titles.
    """

    renamed: ClassVar[Mapping[str, str]] = {"masks": "isolated_masks"}
    renamed_values: ClassVar[Mapping[str, Any]] = {"isolated_masks": {"unseen": True, "seen": False}}
    data: Path = Path("data/emoji")
    text: Path = Path("runs/text/final")
    image: Path | None = Path("runs/vqgan/final")
    objective: Annotated[SerializeAsAny[ObjectiveSettings], BeforeValidator(read_settings)] = (
        CausalMaskSettings()
    )
    views: ViewSettings = ViewSettings()
    window: int = Field(512, ge=16)
    backbone: BackboneConfig = BackboneConfig()
    backbone_from: str | None = None
    warm: WarmStart = WarmStart()
    expand: int = Field(0, ge=0)
    lora: LoraSettings = LoraSettings()
    mask_embedding: Literal["mean", "keep"] = "mean"
    timestep: int | None = Field(None, ge=2)
    isolated_masks: bool = False
    attention: Literal["objective", "causal"] = "objective"
    anneal: float = Field(0.0, ge=0, le=1)
    packing: Packing = "auto"
    previews: tuple[str, ...] | None = None
    loop: LoopSettings = LoopSettings()

    @model_validator(mode="before")
    @classmethod
    def _attention_by_its_kernel(cls, given: Any) -> Any:
        """`attention: xformers`, as transformers calls the choice of a kernel, is `packing: xformers`."""
        if isinstance(given, dict) and given.get("attention") == "xformers":
            return {**given, "attention": "objective", "packing": given.get("packing", "xformers")}
        return given

    @model_validator(mode="after")
    def _starts_once(self) -> DecoderRecipe:
        if self.warm.source is not None and self.backbone_from is not None:
            raise ValueError("warm.source and backbone_from both name weights to start from; set one")
        if self.expand and self.warm.source is None and self.backbone_from is None:
            raise ValueError("expand needs weights to put layers between; set warm.source or backbone_from")
        if self.lora.rank and self.warm.source is None and self.backbone_from is None:
            raise ValueError("lora.rank needs weights to adapt; set warm.source or backbone_from")
        return self
