"""IBQ (SEED-Voken): taming's network with the largest inner product instead of the nearest code."""

from __future__ import annotations

from cm3kit_tokenizers.vq.families.base import Mapped, Source, families
from cm3kit_tokenizers.vq.families.taming import convert_taming


@families("ibq")
class Ibq:
    """The names are taming's, so it is detected by its settings, or by averaged weights and four blocks per level."""

    title = "IBQ (SEED-Voken)"

    def detect(self, source: Source) -> bool:
        """Detect by the class in the settings; without settings by averages and `num_res_blocks` = 4."""
        model = source.hints.get("model")
        named = str(model.get("class_path", model.get("target", ""))) if isinstance(model, dict) else ""
        if named:
            return "ibq" in named.lower() and "encoder.down.0.block.0.conv1.weight" in source.tensors
        return (
            "model_ema.encoderconv_inweight" in source.tensors
            and "encoder.down.0.block.3.conv1.weight" in source.tensors
            and "encoder.down.0.block.4.conv1.weight" not in source.tensors
        )

    def convert(self, source: Source) -> Mapped:
        """taming's conversion, with the moving averages of the weights."""
        return convert_taming(source, "vq_dot")
