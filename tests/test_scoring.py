"""Scoring: what is given is as likely as decoding says it is, for both decoders and every kind of gap."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import toy_kit

from cm3kit.decoders.scoring import Scored
from cm3kit.fill.fillers import ScoreHow
from cm3kit.fill.filling import PageFiller
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.types import Canvas, Result
from cm3kit_tokenizers import Cm3kitError, ConfigError, Gap, Page, PageError, PictureError

EXACT = GenerateOptions(decoder="cm3", precision="fp32")
CM3, DIFFUSION = GenerateOptions(decoder="cm3"), GenerateOptions(decoder="diffusion", precision="fp32")
SHORT = replace(CM3, max_tokens=8)
LEFT = replace(
    DIFFUSION,
    order="left-to-right",
    schedule="uniform",
    temperature=1.0,
    eoser=False,
    max_tokens=8,
    steps=256,
)
ORDERED = ScoreHow("left-to-right")
PAGES = (
    b"<p>A <mask> apple</p>",
    b"<p><mask></p><img alt='<mask>' src='pear.png'>",
    b"<img alt='pear' src='<mask>'>",
    b"<h1>a <mask></h1><p>on <em><mask></em></p><img alt='<mask>' src='<mask>'>",
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "pear.png")
    return tmp_path


def written(kit: Kit, page: Page, options: GenerateOptions, seed: int) -> list[Result]:
    """Results of every canvas of a page, in order."""
    filling, found = PageFiller(kit, page, options).variant(seed, 0), []
    while (canvas := filling.next_canvas()) is not None:
        found += kit.filler(options).fill([canvas], options, lambda done, total: None)
        filling.take(found[-1])
    return found


def given(result: Result) -> Canvas:
    spans = zip(result.canvas.spans, result.fills, strict=True)
    return replace(result.canvas, spans=tuple(replace(span, answer=fill.ids) for span, fill in spans))


def scores(kit: Kit, canvases: Sequence[Canvas], options: GenerateOptions, how: ScoreHow) -> list[Scored]:
    return kit.filler(options).score(canvases, options, how, lambda done, total: None)


@pytest.mark.parametrize("html", PAGES)
@pytest.mark.parametrize("kind", ["both", "prefix"])
def test_answers_are_as_likely_as_the_causal_decoder_says(site: Path, html: bytes, kind: str) -> None:
    kit, page = toy_kit(kind), Page.parse(html, site)
    for seed in range(3):
        for result in written(kit, page, SHORT, seed):
            if all(fill.ended for fill in result.fills):
                (found,) = scores(kit, [given(result)], CM3, ScoreHow())
                assert found.method == "exact" and found.stderr == 0
                for mine, theirs in zip(found.fills, result.fills, strict=True):
                    # Also in the format of keys and values that this machine's `auto` is.
                    assert mine.ids == theirs.ids
                    assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize("html", PAGES)
@pytest.mark.parametrize("kind", ["both", "blocks", "causal-blocks"])
def test_answers_are_as_likely_as_the_diffusion_decoder_says(site: Path, html: bytes, kind: str) -> None:
    kit, page = toy_kit(kind), Page.parse(html, site)
    for seed in range(3):
        for result in written(kit, page, LEFT, seed):
            (found,) = scores(kit, [given(result)], DIFFUSION, ORDERED)
            assert found.method == ("left-to-right" if kind == "both" else "exact")
            for mine, theirs in zip(found.fills, result.fills, strict=True):
                assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_the_causal_score_is_the_models_own() -> None:
    kit, page = toy_kit(), Page.parse(b"<p>A <mask> apple</p>")
    (found,) = kit.score(page, ["red"], options=EXACT)
    vocab, ids = kit.vocab, kit.tokenizer.encode(page.nodes())
    answer = kit.tokenizer.text_ids(" red")
    known = [vocab.sentinel(0) if isinstance(each, Gap) else each for each in ids]
    row = [vocab.eod, *known, vocab.eod, vocab.sentinel(0), *answer, vocab.eoss]
    with torch.no_grad():
        logp_TV = kit.backbone(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
    want = [float(logp_TV[len(row) - 2 - back, row[len(row) - 1 - back]]) for back in range(len(answer) + 1)]
    assert found.logprobs[0] == pytest.approx(want[::-1], abs=1e-4)
    assert found.tokens == len(want) and found.gaps == {0: pytest.approx(sum(want), abs=1e-4)}


@pytest.mark.parametrize("options", [CM3, DIFFUSION], ids=["cm3", "diffusion"])
@pytest.mark.parametrize("kind", ["both", "blocks"])
def test_answers_do_not_change_one_another(options: GenerateOptions, kind: str) -> None:
    kit, page = toy_kit(kind), Page.parse(b"<p>A <mask> apple and a pear</p>")
    answers = ["red", "green", "big red", "a", "the book of fruit", "red", "pear"]
    together = kit.score(page, answers, options=options)
    alone = [kit.score(page, [each], options=options)[0] for each in answers]
    assert [each.logprob for each in together] == pytest.approx([each.logprob for each in alone], abs=1e-4)
    assert together[0].logprob == together[5].logprob and len({each.logprob for each in together}) == 6


def orders_of(kit: Kit, canvas: Canvas) -> float:
    """The mean over all orders of the log-probability of writing the answer in that order."""
    (span,), mask, eoss = canvas.spans, kit.vocab.mask, kit.vocab.eoss
    ids = (*(span.answer or ()), eoss)
    flat = canvas.flatten(mask)
    slots, sums = flat.ranges[0][: len(ids)], []
    for order in permutations(range(len(ids))):
        row, total = list(flat.ids), 0.0
        for place in order:
            with torch.no_grad():
                hidden = kit.backbone.model(
                    input_ids=torch.tensor([row]),
                    attention_mask=torch.ones(1, 1, len(row), len(row), dtype=torch.bool),
                ).last_hidden_state
                logits_V = kit.backbone.lm_head(hidden)[0, slots[place]]
            logits_V[mask] = -torch.inf
            total += float(logits_V.log_softmax(-1)[ids[place]])
            row[slots[place]] = ids[place]
        sums.append(total)
    return sum(sums) / len(sums)


def laid(kit: Kit, text: str, html: bytes = b"<p>A <mask> apple</p>") -> Canvas:
    filler = PageFiller(kit, Page.parse(html), DIFFUSION)
    canvas = kit.filler(DIFFUSION).window(filler.ids, DIFFUSION, 0)
    (span,) = canvas.spans
    return replace(canvas, spans=(replace(span, answer=tuple(kit.tokenizer.text_ids(text))),))


def test_the_bound_is_the_mean_over_all_orders() -> None:
    kit = toy_kit()
    for text in (" red", " red apple", " big book"):
        canvas = laid(kit, text)
        (all_masks,) = scores(kit, [canvas], DIFFUSION, ScoreHow("bound", 256))
        (drawn,) = scores(kit, [canvas], DIFFUSION, ScoreHow("bound", 2 ** len(canvas.spans[0].answer or ())))
        want = orders_of(kit, canvas)
        assert all_masks.logprob == pytest.approx(want, abs=2e-4) and all_masks.stderr == 0
        assert all_masks.method == drawn.method == "bound"
        assert drawn.stderr > 0 and abs(drawn.logprob - want) < 6 * drawn.stderr + 1e-3


def test_the_estimate_is_unbiased_and_its_error_honest() -> None:
    kit, canvas = toy_kit(), laid(toy_kit(), " red apple and pear")
    (want,) = scores(kit, [canvas], DIFFUSION, ScoreHow("bound", 1 << 12))
    assert want.stderr == 0
    drawn = scores(kit, [replace(canvas, seed=seed) for seed in range(40)], DIFFUSION, ScoreHow("bound", 12))
    mean = sum(each.logprob for each in drawn) / len(drawn)
    spread = (sum((each.logprob - mean) ** 2 for each in drawn) / (len(drawn) - 1)) ** 0.5
    assert abs(mean - want.logprob) < 4 * spread / len(drawn) ** 0.5
    # Sizes are spread evenly, so that the error that is told is rather too large.
    assert spread < 1.5 * sum(each.stderr for each in drawn) / len(drawn)


def test_gaps_that_are_not_answered_stay_open(site: Path) -> None:
    page = Page.parse(b"<p>A <mask> and a <mask></p>", site)
    for kit, options in ((toy_kit(), CM3), (toy_kit("blocks"), DIFFUSION)):
        both, first = kit.score(page, [{0: "red", 1: "pear"}, {0: "red"}], options=options)
        assert both.gaps is not None and first.gaps is not None
        assert both.gaps[0] == pytest.approx(first.gaps[0], abs=1e-4) and set(first.gaps) == {0}
        assert both.logprob == pytest.approx(sum(each or 0 for each in both.gaps.values()), abs=1e-6)


def test_pictures_and_regions_are_scored_by_their_codes(site: Path) -> None:
    kit, pear = toy_kit(), (site / "pear.png").read_bytes()
    page = Page.parse(b"<p>pear</p><img alt='pear' src='pear.png'>", site).region("pear.png", (0, 0, 8, 8))
    other = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(other, "PNG")
    for options in (CM3, DIFFUSION):
        found = kit.score(page, [pear, other.getvalue()], options=options)
        assert found[0].tokens == found[1].tokens == 4 and found[0].logprob != found[1].logprob
    (whole,) = kit.score(Page.parse(b"<img alt='pear' src='<mask>'>"), [pear], options=CM3)
    assert whole.tokens == 16 and len(whole.logprobs[0]) == 16


def test_pmi_takes_the_answer_without_the_page() -> None:
    kit = toy_kit()
    rich, poor = Page.parse(b"<p>A big <mask> apple</p>"), Page.parse(b"<p><mask></p>")
    (found,) = kit.score(rich, ["red"], pmi=True, options=CM3)
    assert found.prior is not None and found.pmi == found.logprob - found.prior
    # The space before the gap is a matter of the page's words.
    (bare,) = kit.score(poor, [" red"], options=CM3)
    assert found.prior == pytest.approx(bare.logprob, abs=1e-4)


@pytest.mark.parametrize("kind", ["both", "blocks"])
def test_a_whole_page_is_scored_id_by_id(kind: str) -> None:
    kit = toy_kit(kind)
    page = Page.parse(b"<p>A red apple</p>")
    (found,) = kit.score(page, options=EXACT)
    ids = [kit.vocab.eod, *(each for each in kit.tokenizer.encode(page.nodes())), kit.vocab.eod]
    row_T = torch.tensor(ids)
    with torch.no_grad():
        logp_TV = kit.backbone(input_ids=row_T[None]).logits[0].log_softmax(-1)
    want = float(logp_TV[:-1].gather(-1, row_T[1:, None]).sum())
    assert found.logprob == pytest.approx(want, abs=1e-3) and found.tokens == len(ids) - 1
    (other,) = kit.score(page, options=DIFFUSION)
    assert other.method == ("bound" if kind == "both" else "exact") and math.isfinite(other.logprob)


def test_a_page_longer_than_the_window_is_scored_piece_by_piece() -> None:
    kit = toy_kit()
    (found,) = kit.score(Page.parse(b"<p>" + b"a red apple and a pear. " * 60 + b"</p>"), options=CM3)
    assert found.windows > 1 and found.tokens > kit.parts.defaults.window
    assert sum(map(len, found.logprobs)) == found.tokens


def test_gaps_beyond_a_window_see_the_answers_before_them() -> None:
    kit = toy_kit()
    html = b"<p>A <mask> apple</p>" + b"<p>a red apple and a pear.</p>" * 40 + b"<p>a <mask></p>"
    found = kit.score(Page.parse(html), [{0: "red", 1: "pear"}, {1: "pear"}], options=CM3)
    assert found[0].windows == 2 and found[1].windows == 1
    assert found[0].gaps is not None and set(found[0].gaps) == {0, 1}


@pytest.mark.parametrize(
    ("html", "answers", "code"),
    [
        (b"<p>A <mask> apple</p>", [{1: "red"}], "bad_value"),
        (b"<p>A <mask> apple</p>", [{}], "bad_value"),
        (b"<p>A <mask> apple</p>", None, "bad_value"),
        (b"<p>A red apple</p>", ["red"], "no_mask"),
        (b"<p>A <mask> apple</p>", [Image.new("RGB", (4, 4))], "bad_value"),
        (b"<img alt='a' src='<mask>'>", ["red"], "bad_value"),
        (b"<img alt='<mask>' src='gone.png'>", ["red"], "no_file"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    site: Path, html: bytes, answers: list[object] | None, code: str
) -> None:
    with pytest.raises(Cm3kitError) as error:
        toy_kit().score(Page.parse(html, site), answers)  # type: ignore[arg-type]
    assert error.value.code == code and "\n" not in str(error.value)
    assert isinstance(error.value, PageError | ConfigError | PictureError)


def test_a_picture_that_cannot_be_opened_is_said_as_in_infill(site: Path) -> None:
    page = Page.parse(b"<p>A <mask> apple</p><img alt='<mask>' src='gone.png'>", site)
    (found,) = toy_kit().score(page, [{0: "red"}])
    assert found.warnings == toy_kit().infill(page, seed=0)[0].warnings and found.warnings


@pytest.mark.parametrize(
    ("options", "method", "kind"),
    [
        (CM3, "bound", "both"), (CM3, "left-to-right", "both"), (DIFFUSION, "exact", "both"),
        (DIFFUSION, "bound", "blocks"),
    ],
)  # fmt: skip
def test_a_way_of_scoring_that_a_model_has_not_is_refused(
    options: GenerateOptions, method: str, kind: str
) -> None:
    with pytest.raises(ConfigError, match=method):
        toy_kit(kind).score(Page.parse(b"<p>A <mask></p>"), ["red"], method=method, options=options)  # type: ignore[arg-type]


def test_a_length_is_kept_and_has_no_end() -> None:
    kit, options = toy_kit(), replace(DIFFUSION, length=2)
    page = Page.parse(b"<p>A <mask> apple</p>")
    answer = next(
        each for each in ("red", "the book", "big", "on") if len(kit.tokenizer.text_ids(f" {each}")) == 2
    )
    (found,) = kit.score(page, [answer], method="left-to-right", options=options)
    assert found.tokens == 2 and len(found.logprobs[0]) == 2
    with pytest.raises(ConfigError, match="exactly 2"):
        kit.score(page, ["red apple and the"], options=options)
