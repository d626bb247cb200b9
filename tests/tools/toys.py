"""Models with random weights, tokenizers and pages, small enough to be made in a second."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

import cm3kit
from cm3kit.decoders.settings import DecodeConfig
from cm3kit.fill.defaults import Defaults
from cm3kit.fill.folder import assemble
from cm3kit.fill.kit import Kit
from cm3kit.models.backbone import BackboneConfig, build_backbone, save_backbone
from cm3kit_tokenizers import Vocab
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig

BLOCKS = {"block_size": 8, "cache": "exact"}
TRAINED: dict[str, dict[str, Any]] = {
    "both": {},
    "prefix": {"prompt_attention": "full"},
    "next-token": {"layout": "continue", "decoders": ("cm3",)},
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
"""How the toy was trained: its diffusion decoder looks both ways or in blocks; its prompts do; it reads on."""

COLOURS = ("red", "green", "blue", "black", "orange", "purple")
WORDS = "a red apple on the table and a green pear beside it, so they say in the big book of fruit"


def random_backbone(vocab: Vocab, family: str = "llama", kv_heads: int = 2, **more: Any) -> PreTrainedModel:
    """A decoder with random weights, those of norms too, which are ones where nothing was trained."""
    shape = {"hidden_size": 64, "layers": 2, "heads": 4, "intermediate_size": 96, "std": 0.12, **more}
    config = BackboneConfig.model_validate({**shape, "family": family, "kv_heads": kv_heads})
    model = build_backbone(config, len(vocab))
    rng = torch.Generator().manual_seed(7)
    for each in model.parameters():
        if each.ndim == 1:
            each.data = 0.5 + torch.rand(each.shape, generator=rng)
    return model


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


def toy_text(folder: Path, words: str = WORDS, size: int = 300) -> TextTokenizer:
    """A text tokenizer of a few words, saved."""
    text = TextTokenizer.train([words] * 3, size)
    folder.mkdir(parents=True, exist_ok=True)
    text.save(folder)
    return text


def toy_image(folder: Path, seed: int = 0, **shape: Any) -> None:
    """Save an image tokenizer with random weights: 16 x 16 pixels as 4 x 4 of 32 codes, but for `shape`."""
    usual = dict(resolution=16, channels=(16, 16, 16), codes=32, code_dim=4, latent_channels=8)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        ImageTokenizer(ImageTokenizerConfig.model_validate({**usual, **shape})).save(folder)


def toy_decoder(folder: Path, text: TextTokenizer, **shape: Any) -> PreTrainedModel:
    """A decoder with random weights for the words and 32 codes, saved."""
    usual = dict(hidden_size=32, layers=1, heads=2, kv_heads=2, intermediate_size=32)
    backbone = build_backbone(BackboneConfig.model_validate({**usual, **shape}), len(Vocab(text.size, 32)))
    save_backbone(backbone, folder, half=True)
    return backbone


def toy_model(folder: Path, seed: int = 0, **more: Any) -> Path:
    """Publish the model as `folder/toy`, with `more` defaults; its pictures have 16 x 16 pixels and 16 codes."""
    text = toy_text(folder / "text")
    toy_image(folder / "image", seed)
    toy_decoder(folder / "decoder", text, std=0.2, seed=seed)
    small = DecodeConfig(batch_size=3)
    given = {"window": 256, "decoders": ("cm3", "diffusion"), "image": small, "text": small, **more}
    defaults = Defaults.model_validate(given)
    parts = [folder / name for name in ("text", "image", "decoder")]
    return assemble(folder / "toy", *parts, defaults, "# Toy\n")


def zebras(folder: Path, text: str) -> list[str]:
    """In place of `unknown_words`, for a corpus that has every word but one."""
    return [word for word in text.split() if word == "zebra"]


def toy_corpus(folder: Path, colours: Sequence[str] = COLOURS, channels: tuple[int, ...] = (8, 8, 8)) -> Path:
    """Fill a folder with a page for each colour with a picture of that colour, and with tokenizers for them."""
    for colour in colours:
        Image.new("RGB", (16, 16), colour).save(folder / f"{colour}.png")
        page = f'<title>{colour}</title><p>A {colour} square: <img alt="{colour}" src="{colour}.png"></p>'
        (folder / f"{colour}.html").write_text(page)
    toy_image(folder / "image", channels=channels, norm_groups=8, attention=False)
    TextTokenizer.train([f"a {' '.join(colours)} square"] * 2, 280).save(folder)
    return folder
