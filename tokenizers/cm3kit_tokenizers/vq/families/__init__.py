"""Conversion of image tokenizers of other projects to `ImageTokenizer`; each family is one file."""

from cm3kit_tokenizers.vq.families.base import Source, families
from cm3kit_tokenizers.vq.families.diffusers_folder import Diffusers
from cm3kit_tokenizers.vq.families.flax import Flax
from cm3kit_tokenizers.vq.families.ibq import Ibq
from cm3kit_tokenizers.vq.families.llamagen import LlamaGen
from cm3kit_tokenizers.vq.families.opening import open_foreign, read_source
from cm3kit_tokenizers.vq.families.taming import Taming

__all__ = [
    "Diffusers", "Flax", "Ibq", "LlamaGen", "Source", "Taming", "families", "open_foreign", "read_source",
]  # fmt: skip
