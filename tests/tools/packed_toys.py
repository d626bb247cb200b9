"""Four pages of one colour each, a decoder that trains on them, and packed rows of all kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import COLOURS, toy_corpus

from cm3kit.models.backbone import BackboneConfig
from cm3kit.rng import generator
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.loop import LoopSettings

V = 40
LOOP = LoopSettings(
    steps=3, batch_size=2, precision="fp32", save_every=4, preview_every=100, log_every=1, validate_every=2, ema=0.9
)  # fmt: skip


@pytest.fixture(scope="module", name="corpus")
def four_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pages with pictures of one colour each, and tokenizers for them."""
    folder = toy_corpus(tmp_path_factory.mktemp("toy"), COLOURS[:4])
    pages = [
        {"page": f"{each}.html", "split": "rest" if each == "red" else "train", "weight": 1}
        for each in COLOURS[:4]
    ]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, pages)))
    return folder


def task(corpus: Path, packing: str, **changes: Any) -> DecoderTask:
    shape = BackboneConfig(hidden_size=64, layers=1, heads=4, kv_heads=2, intermediate_size=64, std=0.1)
    settings = {"window": 150, "backbone": shape, "loop": LOOP, "previews": (), "packing": packing}
    places = {"data": corpus, "text": corpus, "image": corpus / "image"}
    return DecoderTask(DecoderRecipe.model_validate({**places, **settings, **changes}), corpus / "cache")


def packed(length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Documents of many lengths with blocks and noise of any kind, and padding at the end."""
    draw = generator(seed)
    documents = torch.randint(1, 5, (2, length), generator=draw).sort(-1).values
    documents[:, length - 20 :] = 0
    blocks = torch.randint(0, 6, (2, length), generator=draw)
    return documents, blocks, torch.randint(0, 2, (2, length), generator=draw).bool()
