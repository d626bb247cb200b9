"""Size hints: drawn by their law, written behind sentinels and nowhere else, and of no trace where they are off."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from canvases import at_most, flat_spans, lay_out
from torch import Generator

from cm3kit.fill.causal import CausalFiller
from cm3kit.fill.defaults import Defaults
from cm3kit.fill.fillers import ModelContext
from cm3kit.fill.folder import as_trained
from cm3kit.fill.kit import GenerateOptions, load
from cm3kit.fill.layouts import put_back
from cm3kit.fill.trained import Trained
from cm3kit.objectives import CausalMask, Preset, SizeHints
from cm3kit.objectives.causal_mask import CausalMaskSettings
from cm3kit.objectives.contract import TokenizerParts
from cm3kit.objectives.hints import WIDTH, HintLaw
from cm3kit.types import Fill
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab

VOCAB = Vocab(400, 64)
TEXT, IMAGE, HINT = VOCAB.text.start, VOCAB.image.start, VOCAB.hint
DIGITS = tuple(range(TEXT + 20, TEXT + 30))
GRID = (2, 3)
PRESETS = ("recommended", "cm3-paper", "metaseq", "fim")


def generator(seed: int) -> Generator:
    rng = Generator()
    rng.manual_seed(seed)
    return rng


def masking(preset: Preset | str, share: float = 0.8, noise: float = 0.1) -> CausalMask:
    hints = SizeHints(VOCAB, DIGITS, HintLaw(share=share, noise=noise)) if share else None
    return CausalMask(VOCAB, preset, grid=GRID, hints=hints)


def page(chance: random.Random) -> list[int]:
    """Paragraphs full of digits, and pictures."""
    m, ids = VOCAB.markup_id, list[int]()
    for _ in range(chance.randint(1, 5)):
        ids += [m("<p>"), *(TEXT + chance.randrange(40) for _ in range(chance.randint(0, 30))), m("</p>")]
        if chance.random() < 0.5:
            codes = [IMAGE + chance.randrange(64) for _ in range(6)]
            ids += [m("<img"), m(' src="'), *codes, m('"'), m(">")]
    return ids


# ---------------------------------------------------------------- the law


def normal(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


@pytest.mark.parametrize(("size", "noise"), [(1, 0.1), (12, 0.1), (12, 0.5), (300, 0.1)])
def test_a_hint_is_the_floor_of_a_normal_around_the_size(size: int, noise: float) -> None:
    count, share = 40_000, 0.8
    told = SizeHints(VOCAB, DIGITS, HintLaw(share=share, noise=noise)).draw([size] * count, generator(1))
    drawn = [each for each in told if each is not None]
    assert abs(len(drawn) / count - share) < 5 * math.sqrt(share * (1 - share) / count)
    # P(hint = k) = F(k + 1) - F(k), and all below 2 is 1.
    chance = {
        k: normal((k + 1 - size) / (noise * size)) - (normal((k - size) / (noise * size)) if k > 1 else 0)
        for k in range(1, 4 * size + 4)
    }
    mean = sum(k * p for k, p in chance.items())
    spread = math.sqrt(sum((k - mean) ** 2 * p for k, p in chance.items()))
    assert abs(sum(drawn) / len(drawn) - mean) < 5 * spread / math.sqrt(len(drawn)) + 1e-9
    found = math.sqrt(sum((each - mean) ** 2 for each in drawn) / len(drawn))
    assert found == pytest.approx(spread, rel=0.03, abs=1e-9)
    for k in range(max(1, size - 2), size + 3):
        rate, wanted = drawn.count(k) / len(drawn), chance[k]
        assert abs(rate - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / len(drawn)) + 1e-9


def test_without_noise_the_size_itself_is_told() -> None:
    hints = SizeHints(VOCAB, DIGITS, HintLaw(share=1.0, noise=0.0))
    assert hints.draw([1, 7, 250], generator(0)) == [1, 7, 250]
    assert hints.ids(250) == [DIGITS[2], DIGITS[5], DIGITS[0], HINT]
    assert hints.ids(123_456) == [*[DIGITS[9]] * 4, HINT] and len(hints.ids(9999)) == WIDTH


# ---------------------------------------------------------------- examples


@pytest.mark.parametrize("preset", PRESETS)
def test_hints_follow_sentinels_of_the_page_alone_and_weigh_nothing(preset: str) -> None:
    exact, chance, rng = masking(preset, 1.0, 0.0), random.Random(2), generator(2)
    told = plain = 0
    for _ in range(300):
        ids = page(chance)
        before = rng.get_state()
        out = exact.make_example(ids, rng, 4000)
        rng.set_state(before)
        bare = masking(preset, 0).make_example(ids, rng, 4000)
        assert bare.spans == out.spans, "hints are drawn after the spans"
        expected, weights = list(bare.ids), list(bare.weights)
        low = min((id for id in bare.ids if id in VOCAB.sentinel_range), default=0)
        for index, span in reversed(list(enumerate(out.spans))):
            hidden = ids[span.start : span.stop]
            if all(id in VOCAB.image for id in hidden):
                plain += 1
                continue
            at = expected.index(low + index) + 1
            hint = [*(DIGITS[int(digit)] for digit in str(len(hidden))), HINT]
            expected[at:at], weights[at:at] = hint, [0.0] * len(hint)
            told += 1
        assert (out.ids, out.weights) == (expected, weights)
    assert told > 100 and (plain > 20 or preset != "recommended")


@pytest.mark.parametrize("preset", PRESETS)
def test_an_example_with_hints_comes_back_and_keeps_to_its_budget(preset: str) -> None:
    hinted, chance, rng = masking(preset), random.Random(3), generator(3)
    hints = 0
    for _ in range(400):
        ids = page(chance)
        budget = chance.choice([12, 30, 80, 1000])
        out = hinted.make_example(ids, rng, budget)
        assert len(out.ids) <= budget and len(out.ids) == len(out.weights)
        hints += out.ids.count(HINT)
        if len(out.ids) == 1000 or budget == 1000:
            assert hinted.unmask(out.ids) == ids
    assert hints > 100


def test_off_is_what_it_was(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.train(["a red apple 12 times"], 300)
    vocab = Vocab(tokenizer.size, 64)
    parts = TokenizerParts(vocab, tokenizer, GRID)
    made = CausalMask.build(CausalMaskSettings(), parts)
    assert isinstance(made, CausalMask) and made.hints is None
    chance = random.Random(4)
    for seed in range(50):
        ids = [id if id < vocab.text.stop else vocab.text.start for id in page(chance)]
        one = made.make_example(ids, generator(seed), 60)
        other = CausalMask(vocab, continues=tuple(tokenizer.continues), grid=GRID)
        assert one == other.make_example(ids, generator(seed), 60) and HINT not in one.ids
    on = CausalMaskSettings(hints=HintLaw(share=0.8))
    made = CausalMask.build(on, parts)
    assert isinstance(made, CausalMask) and made.hints is not None
    assert tokenizer.decode([id - vocab.text.start for id in made.hints.digits]) == "0123456789"
    Trained(uses=made.uses(64)).save(tmp_path)
    trained = Trained.load(tmp_path)
    assert trained is not None and trained.uses[0].hints and as_trained(Defaults(), trained).hints
    assert not as_trained(Defaults(hints=False), trained).hints


# ---------------------------------------------------------------- pages


def test_an_example_is_a_posed_page_that_wishes_for_its_sizes() -> None:
    exact, chance, rng = masking(Preset(), 1.0, 0.0), random.Random(5), generator(5)
    compared = 0
    for _ in range(200):
        ids = page(chance)
        out = exact.make_example(ids, rng, 4000)
        gapped: list[int | Gap] = list(ids)
        for index, span in reversed(list(enumerate(out.spans))):
            whole = all(id in VOCAB.image for id in ids[span.start : span.stop])
            size = span.stop - span.start
            gap = Gap(index, "image", size) if whole else Gap(index, "content", size=size)
            gapped[span.start : span.stop] = [gap]
        posed = lay_out("behind", VOCAB, gapped, at_most(50), hints=exact.hints)
        answers = [ids[span.start : span.stop] for span in out.spans]
        written = [
            id
            for blank, answer in zip(posed.spans, answers, strict=True)
            for id in (*blank.lead, *answer, VOCAB.eoss)
        ]
        assert [*posed.ids, *written] == out.ids
        fills = [Fill(tuple(answer), (), True) for answer in answers]
        assert put_back(gapped, posed, fills) == ids
        compared += any(isinstance(each, Gap) and each.size for each in gapped)
    assert compared > 150
    sized: list[int | Gap] = [TEXT, Gap(0, "content", size=12)]
    assert lay_out("behind", VOCAB, sized, at_most(9)).ids == (
        VOCAB.eod,
        TEXT,
        VOCAB.sentinel(0),
        VOCAB.eod,
    )


PAGE = b"""<!doctype html><title>A <mask size=4></title>
<p>Up to <MASK  size="12" /></mask> and <mask size = '3'></p>
<p><img alt='<mask size="7">' src="<mask>"> <mask></p>"""


def test_a_page_names_sizes() -> None:
    found = Page.parse(PAGE)
    assert [gap.size for gap in found.gaps] == [4, 12, 3, 7, None, None]
    assert [node.size for node in found.nodes() if isinstance(node, Gap)] == [4, 12, 3, 7, None, None]
    fills = {index: "x" for index in range(6)}
    bare = Page.parse(
        b"""<!doctype html><title>A <mask></title>
<p>Up to <mask></mask> and <mask></p>
<p><img alt='<mask>' src="<mask>"> <mask></p>"""
    )
    assert found.splice(fills) == bare.splice(fills) and found.splice({}) == PAGE
    assert bare.sized({0: 4, 1: 12, 2: 3, 3: 7}).nodes() == found.nodes()
    assert Page.parse(b"<p>some <b>words</b>").select("b").sized({0: 5}).gaps[0].size == 5


@pytest.mark.parametrize("size", ["0", "10000", "-3", "many", "1.5", "", "'1 2'", "\u0663", "9" * 5000])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    for written in (f"<p>\n<mask size={size}>", f"<title>\n<mask size={size}></title>"):
        with pytest.raises(PageError, match="Line 2: a gap has the size") as caught:
            Page.parse(written.encode())
        assert caught.value.code == "bad_value"
    quoted = size.strip("'")
    with pytest.raises(PageError, match="has the size"):
        Page.parse(f"<img alt=\"<mask size='{quoted}'>\">".encode())


def test_a_picture_has_its_own_size() -> None:
    with pytest.raises(PageError, match="has the size of its picture"):
        Page.parse(b'<img src="<mask size=3>">')
    found = Page.parse(b'<p><mask></p><img src="<mask>">')
    for sizes, message in (({1: 3}, "gap_place"), ({0: 0}, "bad_value"), ({0: 10_000}, "bad_value")):
        with pytest.raises(PageError, match=message):
            found.sized(sizes)
    with pytest.raises(KeyError, match="no gap 2"):
        found.sized({2: 3})


@pytest.mark.parametrize("decoder", ["cm3", "diffusion"])
def test_the_shipped_model_fills_gaps_whatever_size_is_wished_for(decoder: str) -> None:
    kit = load("pictures", "cpu")
    options = GenerateOptions(decoder=decoder, max_tokens=6 if decoder == "cm3" else None)  # type: ignore[arg-type]
    source = b"<h1>Red apple</h1>\r\n<p>A <mask size=3> fruit &amp; more.</p>"
    filled = kit.infill(Page.parse(source), seed=1, options=options)[0]
    start, end = source.index(b"<mask"), source.index(b">", source.index(b"<mask")) + 1
    assert filled.html.startswith(source[:start]) and filled.html.endswith(source[end:])
    if decoder == "cm3":
        bare = source[:start] + b"<mask>" + source[end:]
        assert kit.infill(Page.parse(bare), seed=1, options=options)[0].html == filled.html, (
            "it knows no hints"
        )
    else:
        assert filled.trace is not None
        stretch = flat_spans(filled.trace.trajectories[0].canvas)[0]
        assert stretch.stop - stretch.start == 4, "the least room of training with an end behind three tokens"


def test_a_model_that_was_trained_with_hints_is_told_them() -> None:
    kit = load("pictures", "cpu")
    parts = replace(kit.parts, defaults=kit.parts.defaults.model_copy(update={"hints": True}))
    filler = CausalFiller(ModelContext(parts, kit.tokenizer, kit.context.grammar))
    words, gap = kit.tokenizer.text_ids("Up to"), Gap(0, "content", size=120)
    posed = filler.window([*words, gap], GenerateOptions(), 0)
    told = [*kit.tokenizer.text_ids("1"), *kit.tokenizer.text_ids("2"), *kit.tokenizer.text_ids("0")]
    vocab = kit.vocab
    assert posed.ids == (vocab.eod, *words, vocab.sentinel(0), *told, vocab.hint, vocab.eod)
    assert posed.spans[0].max_tokens == 240, "a hint is a guess, and may be half of it"
    window = parts.defaults.window
    long = [*words * window, gap, *words * window]
    cut = filler.window(long, GenerateOptions(max_tokens=50), 0)
    assert window - 4 <= len(cut.ids) + 52 <= window and vocab.hint in cut.ids
    answer = filler.fill(
        [filler.window([*words, gap], GenerateOptions(max_tokens=5), 0)], GenerateOptions(), lambda *_: None
    )
    assert len(answer[0].fills[0].ids) <= 5 and torch.isfinite(torch.tensor(answer[0].fills[0].logprob))
