"""A family of image tokenizers: our own names behind a prefix. Try: cm3kit model convert weights.safetensors."""

from dataclasses import replace

from cm3kit_tokenizers.vq.families.base import Mapped, Source, families
from cm3kit_tokenizers.vq.families.taming import convert_taming


@families("prefixed")
class Prefixed:
    """taming's network, every tensor of which is called `mine.…`."""

    title = "mine"

    def detect(self, source: Source) -> bool:
        """By the prefix."""
        return all(name.startswith("mine.") for name in source.tensors)

    def convert(self, source: Source) -> Mapped:
        """Drop the prefix, and go on as for taming."""
        tensors = {name.removeprefix("mine."): each for name, each in source.tensors.items()}
        return convert_taming(replace(source, tensors=tensors), "vq")
