"""LlamaGen's VQ: taming's network with other names and codes on the unit sphere."""

from __future__ import annotations

import re
from dataclasses import replace

import torch.nn.functional as F

from cm3kit_tokenizers.vq.families.base import Mapped, Source, families
from cm3kit_tokenizers.vq.families.taming import convert_taming

MIDDLE = ("block_1", "attn_1", "block_2")


@families("llamagen")
class LlamaGen:
    """Codes are normalised at conversion, so that a lookup equals LlamaGen's decoding."""

    title = "LlamaGen"

    def detect(self, source: Source) -> bool:
        """Detect by the names of the encoder's levels."""
        return "encoder.conv_blocks.0.res.0.conv1.weight" in source.tensors

    def convert(self, source: Source) -> Mapped:
        """Rename to taming's names, and convert as taming's."""
        found = [re.match(r"encoder\.conv_blocks\.(\d+)\.", name) for name in source.tensors]
        levels = 1 + max(int(each[1]) for each in found if each)
        tensors = {
            _renamed(name, levels): each
            for name, each in source.tensors.items()
            if name != "quantize.codebook_used"
        }
        mapped = convert_taming(replace(source, tensors=tensors), "vq_l2")
        codes_KD = mapped.network["quantize.embedding.weight"]
        mapped.network["quantize.embedding.weight"] = F.normalize(codes_KD.float(), dim=1)
        return mapped


def _renamed(name: str, levels: int) -> str:
    def level(found: re.Match[str]) -> str:
        half, index = found[1], int(found[2])
        return f"{half}.down.{index}." if half == "encoder" else f"{half}.up.{levels - 1 - index}."

    name = re.sub(r"^(encoder|decoder)\.conv_blocks\.(\d+)\.", level, name)
    name = re.sub(r"^((?:en|de)coder\.(?:down|up)\.\d+)\.res\.", r"\1.block.", name)
    return re.sub(r"\.mid\.([012])\.", lambda found: f".mid.{MIDDLE[int(found[1])]}.", name)
