"""Models of words alone, from training without an image tokenizer to a page with a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import toy_corpus

import cm3kit
from cm3kit.fill.kit import GenerateOptions
from cm3kit.training import run as train_kind
from cm3kit_cli.main import run
from cm3kit_tokenizers import Page


@pytest.mark.parametrize("kind", ["cm3", "mdm"])
def test_a_model_of_words_alone_is_trained_without_an_image_tokenizer(tmp_path: Path, kind: str) -> None:
    (tmp_path / "pages").mkdir()
    corpus, made = toy_corpus(tmp_path / "pages"), tmp_path / "run"
    shape = {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 16}
    loop = {"steps": 2, "batch_size": 2, "preview_every": 2, "validate_every": 2, "precision": "fp32"}
    changes = [
        f"data={corpus}", f"text={corpus}", "image=null", "window=256", 'previews=["red"]',
        *(f"backbone.{name}={value}" for name, value in shape.items()),
        *(f"loop.{name}={value}" for name, value in loop.items()),
    ]  # fmt: skip
    told: list[str] = []
    train_kind(kind, [], changes, made, device="cpu", warn=told.append)
    assert any("6 pictures are left out, as the recipe has no image tokenizer" in line for line in told)
    page = (made / "previews/step-000002.html").read_text(encoding="utf-8")
    assert "<h1>red</h1>" in page and "<img" not in page
    model = cm3kit.load(made, device="cpu")
    assert model.vocab.image_size == 0 and not (made / "model/image").exists()
    asked = Page.parse(b'<p>A <mask> square <img alt="red" src="red.png"></p>', corpus)
    found = model.infill(asked, options=GenerateOptions(max_tokens=4))[0]
    assert b"red.png" in found.html and any("words alone" in line for line in found.warnings)
    other = tmp_path / "model"
    parts = ["--text", str(corpus), "--decoder", str(made / "final"), "-o", str(other)]
    assert run(["model", "assemble", *parts]) == 0
    assert cm3kit.load(other, device="cpu").vocab == model.vocab
