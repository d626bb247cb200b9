"""Public models: scores equal what writing says, and constraints are kept to, in every prompt style."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import public_folders
import pytest

import cm3kit
from cm3kit.fill.fillers import ScoreHow
from cm3kit.fill.filling import PageFiller
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.fill.scoring import score_words
from cm3kit.fill.styles import PromptStyle
from cm3kit_tokenizers.page import Page

STYLES: tuple[PromptStyle, ...] = ("page", "plain", "chat")
PAGE = Page.parse(b"<h1>A red apple</h1><p>The apple is <mask> and green.</p>")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    folder: Path = public_folders.write("dream", tmp_path_factory.mktemp("public"))
    return cm3kit.load(folder, device="cpu")


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_is_as_likely_as_the_decoder_says(kit: Kit, style: PromptStyle) -> None:
    plain = GenerateOptions(prompt_style=style)
    options = replace(
        plain, length=4, temperature=1.0, order="left-to-right", schedule="uniform", steps=64, eoser=False
    )
    filling = PageFiller(kit, PAGE, options).variant(1, 0)
    canvas = filling.next_canvas()
    assert canvas is not None
    (result,) = kit.filler(options).fill([canvas], options, lambda done, total: None)
    (span,), (fill,) = canvas.spans, result.fills
    asked = replace(canvas, spans=(replace(span, answer=fill.ids),))
    (found,) = kit.filler(plain).score([asked], plain, ScoreHow("left-to-right"), lambda done, total: None)
    assert found.fills[0].logprobs == pytest.approx(fill.logprobs, abs=1e-3)


@pytest.mark.parametrize("style", STYLES)
def test_answers_pages_and_words_are_scored(kit: Kit, style: PromptStyle) -> None:
    options = GenerateOptions(prompt_style=style)
    scores = kit.score(PAGE, ["red", "big"], rounds=8, options=options)
    assert all(each.method == "bound" and math.isfinite(each.logprob) for each in scores)
    (page,) = kit.score(Page.parse(b"<p>A red apple.</p>"), rounds=8, options=options)
    assert math.isfinite(page.logprob) and page.tokens > 3 and page.stderr >= 0
    words = score_words(
        kit, [("A red", " apple"), ("A red", " pear")], options, ScoreHow(rounds=8), lambda d, t: None
    )
    assert len(words) == 2 and words[0].logprob != words[1].logprob


@pytest.mark.parametrize("style", STYLES)
def test_constraints_are_kept_to(kit: Kit, style: PromptStyle) -> None:
    pytest.importorskip("outlines_core")
    for kind, pattern in (("choices:red|big 'book'", "red|big 'book'"), ("regex:[a-c]{3}", "[a-c]{3}")):
        options = GenerateOptions(
            prompt_style=style, temperature=1.0, max_tokens=16, constrain=(f"0={kind}",)
        )
        for filled in kit.infill(PAGE, variants=2, seed=1, options=options):
            assert filled.gaps[0].satisfied and re.fullmatch(pattern, filled.gaps[0].text)
