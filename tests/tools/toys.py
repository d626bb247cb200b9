"""A model with random weights, small enough to be made in a second, and with both decoders."""

from __future__ import annotations

import atexit
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import cm3kit
from cm3kit.decoders.settings import DecodeConfig
from cm3kit.fill.folder import Defaults, assemble
from cm3kit.fill.kit import Kit
from cm3kit.models.backbone import BackboneConfig, build_backbone, save_backbone
from cm3kit_tokenizers import Vocab
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig

BLOCKS = {"block_size": 8, "cache": "exact"}
TRAINED: dict[str, dict[str, Any]] = {
    "both": {},
    "prefix": {"prompt_attention": "full"},
    "blocks": {
        "diffusion": {
            "trained_block": 8, "trained_cache": "exact", "objective": {"name": "block-diffusion"},
            "image": BLOCKS, "text": BLOCKS, "mixed": BLOCKS,
        }
    },
    "causal-blocks": {
        "diffusion": {
            "trained_block": 8, "trained_cache": "causal", "layout": "behind", "shift": True,
            "objective": {"name": "causal-blocks"},
            **{each: {"block_size": 8, "cache": "causal"} for each in ("image", "text", "mixed")},
        }
    },
}  # fmt: skip
"""How the toy was trained: its diffusion decoder looks both ways, or writes block by block; or its prompts do."""

WORDS = "a red apple on the table and a green pear beside it, so they say in the big book of fruit"


@cache
def toy_kit(kind: str = "both") -> Kit:
    """The model loaded, as one of `TRAINED`."""
    folder = TemporaryDirectory(prefix="cm3kit-toy-")
    atexit.register(folder.cleanup)
    return cm3kit.load(toy_model(Path(folder.name) / "parts", **TRAINED[kind]), device="cpu")


@cache
def toy() -> Path:
    """The same for all tests of a process."""
    folder = TemporaryDirectory(prefix="cm3kit-toy-")
    atexit.register(folder.cleanup)
    return toy_model(Path(folder.name) / "parts")


def toy_model(folder: Path, seed: int = 0, **more: Any) -> Path:
    """Publish the model as `folder/toy`, with `more` defaults; its pictures have 16 x 16 pixels and 16 codes."""
    text = TextTokenizer.train([WORDS] * 3, 300)
    (folder / "text").mkdir(parents=True)
    text.save(folder / "text")
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        shape = ImageTokenizerConfig(
            resolution=16, channels=(16, 16, 16), codes=32, code_dim=4, latent_channels=8
        )
        image = ImageTokenizer(shape)
    image.save(folder / "image")
    tiny = BackboneConfig(
        hidden_size=32, layers=1, heads=2, kv_heads=2, intermediate_size=32, std=0.2, seed=seed
    )
    save_backbone(build_backbone(tiny, len(Vocab(text.size, 32))), folder / "decoder", half=True)
    small = DecodeConfig(batch_size=3)
    given = {"window": 256, "decoders": ("cm3", "diffusion"), "image": small, "text": small, **more}
    defaults = Defaults.model_validate(given)
    parts = [folder / name for name in ("text", "image", "decoder")]
    return assemble(folder / "toy", *parts, defaults, "# Toy\n")


def zebras(folder: Path, text: str) -> list[str]:
    """In place of `unknown_words`, for a corpus that has every word but one."""
    return [word for word in text.split() if word == "zebra"]
