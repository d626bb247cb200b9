"""The beginnings of pictures behind their words, example by example."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import toy_corpus

from cm3kit.models.backbone import BackboneConfig
from cm3kit.objectives import CausalMask
from cm3kit.objectives.contract import TokenizerParts, read_settings
from cm3kit.objectives.picture_starts import PictureStarts
from cm3kit.rng import generator
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.types import Example
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab

VOCAB = Vocab(text_size=60, image_size=20, sentinels=8)
WORDS, CODES = list(VOCAB.text)[:10], list(VOCAB.image)[:6]
EOD, GAP = VOCAB.eod, VOCAB.sentinel(0)


def starts(**how: float) -> PictureStarts:
    return PictureStarts(CausalMask(VOCAB, grid=(2, 3)), VOCAB, **{"share": 1.0, "codes": 4, **how})  # type: ignore[arg-type]


def made(ids: list[int], budget: int = 64, **how: float) -> Example:
    (found,) = starts(**how).make_examples([ids], generator(0), budget)
    return found


def test_words_before_a_picture_stay_before_its_first_codes() -> None:
    found = made([*WORDS[:5], *CODES, WORDS[5]])
    assert found.ids == [EOD, *WORDS[:5], *CODES[:4]]
    assert found.weights == [0.0] * 6 + [1.0] * 4


def test_words_behind_a_picture_come_before_it_as_in_causal_masking() -> None:
    found = made([WORDS[0], *CODES, *WORDS[1:6]])
    assert found.ids == [EOD, WORDS[0], GAP, *WORDS[1:6], EOD, GAP, *CODES[:4]]
    whole = CausalMask(VOCAB, grid=(2, 3)).unmask([*found.ids, *CODES[4:], VOCAB.eoss])
    assert whole == [WORDS[0], *CODES, *WORDS[1:6]]
    assert sum(found.weights) == 4


def test_the_words_between_two_pictures_are_those_of_the_first() -> None:
    found = made([WORDS[0], *CODES, *WORDS[1:4], *CODES, *WORDS[4:9]])
    assert found.ids == [EOD, WORDS[0], GAP, *WORDS[1:4], GAP, *CODES[:4]]


@pytest.mark.parametrize(
    ("ids", "budget"), [(WORDS, 64), ([*WORDS, *CODES], 14)], ids=["no picture", "no room"]
)
def test_other_pages_are_masked_as_ever(ids: list[int], budget: int) -> None:
    assert starts().start_of(ids, budget) is None
    assert len(made(ids, budget).ids) <= budget


def test_share_and_order_of_pages_are_kept() -> None:
    pages = [[*WORDS[:3], word, *CODES] for word in WORDS[3:] * 60]
    found = starts(share=0.75).make_examples(pages, generator(1), 64)
    begun = [each.ids[-1] == CODES[3] for each in found]
    assert len(found) == len(pages) and 0.7 < sum(begun) / len(begun) < 0.8
    assert all(page[3] in each.ids for page, each in zip(pages, found, strict=True))
    none = starts(share=0.0).make_examples(pages, generator(1), 64)
    assert not any(each.ids[-1] == CODES[3] for each in none)


def test_a_text_behind_its_page_counts_alone_with_its_end() -> None:
    """Any attribute value or element of words alone, told by the draw; a picture's own value is none."""
    alt, quote, src, end, p, q = (
        VOCAB.markup_id(each) for each in (' alt="', '"', ' src="', ">", "<p>", "</p>")
    )
    ids = [p, *WORDS[:2], q, VOCAB.markup_id("<img"), alt, *WORDS[2:5], quote, src, *CODES, quote, end]
    for draw, words in ((0.0, WORDS[2:5]), (0.4, WORDS[2:5]), (0.6, WORDS[:2]), (0.99, WORDS[:2])):
        found = starts(share=0.0, texts=1.0).text_of(ids, 64, draw)
        assert found is not None
        assert found.ids[-len(words) - 2 :] == [GAP, *words, VOCAB.eoss]
        assert found.weights == [0.0] * (len(found.ids) - len(words) - 1) + [1.0] * (len(words) + 1)
        assert CausalMask(VOCAB, grid=(2, 3)).unmask(found.ids) == ids
    assert starts(share=0.0, texts=1.0).text_of(ids, 20, 0.0) is None
    assert starts(share=0.0, texts=1.0).text_of([*WORDS, *CODES], 64, 0.0) is None


def test_settings_and_uses_are_those_of_causal_masking() -> None:
    settings = read_settings({"name": "picture-starts", "share": 0.5, "codes": 3, "texts": 0.2, "p_ar": 0.25})
    built = PictureStarts.build(
        settings, TokenizerParts(VOCAB, TextTokenizer.train(["a square"], 256), (2, 3))
    )
    assert (built.share, built.codes, built.texts, built.inner.chosen.p_ar) == (0.5, 3, 0.2, 0.25)
    assert built.uses(64) == built.inner.uses(64)
    for wrong in ({"share": 1.5}, {"codes": 0}, {"share": 0.6, "texts": 0.5}):
        with pytest.raises(ConfigError):
            starts(**wrong)


def test_rows_are_filled_though_examples_are_short(tmp_path: Path) -> None:
    toy_corpus(tmp_path, ("red", "green", "blue"))
    objective = {"name": "picture-starts", "share": 1.0, "codes": 1}
    recipe = DecoderRecipe(
        data=tmp_path, text=tmp_path, image=tmp_path / "image", window=96, previews=(), objective=objective,
        backbone=BackboneConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=16),
    )  # fmt: skip
    task = DecoderTask(recipe, tmp_path / "cache")
    batch, names = task.batch(generator(0), 4), task.names(generator(0), 4)
    assert float((batch.documents_BT > 0).float().mean()) > 0.8
    assert len(names) >= int(batch.documents_BT.max()) and set(names) <= {
        "red.html",
        "green.html",
        "blue.html",
    }
