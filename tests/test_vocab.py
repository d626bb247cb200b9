"""One id space whose ranges cannot be reached from one another."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import ATTRIBUTES, MARKUP, PLAIN, SPECIALS, VOID, Vocab

TEXT = TextTokenizer.train(["a red apple <p> <mask:0> <eoss> <pad>"] * 3, 300)


def ranges(vocab: Vocab) -> list[range]:
    return [
        range(len(SPECIALS)), vocab.sentinel_range, vocab.markup, vocab.text, vocab.image,
    ]  # fmt: skip


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 40))
@settings(max_examples=25, derandomize=True, deadline=None)
def test_ranges_are_disjoint_and_cover_everything(text: int, image: int, sentinels: int) -> None:
    vocab = Vocab(text, image, sentinels)
    every = [id for each in ranges(vocab) for id in each]
    assert every == list(range(len(vocab)))
    assert [len(each) for each in ranges(vocab)] == [len(SPECIALS), sentinels, len(MARKUP), text, image]
    assert Vocab.from_dict(json.loads(json.dumps(vocab.to_dict()))) == vocab


def test_specials_and_markup_stand_where_their_names_say() -> None:
    vocab = Vocab(10, 20)
    named = {"<pad>": vocab.pad, "<eod>": vocab.eod, "<eoss>": vocab.eoss, "<mask>": vocab.mask}
    assert all(SPECIALS[id] == name for name, id in named.items())
    assert [vocab.piece(vocab.markup_id(piece)) for piece in MARKUP] == list(MARKUP)
    assert [vocab.sentinel(i) for i in range(vocab.sentinels)] == list(vocab.sentinel_range)
    assert len(set(MARKUP)) == len(MARKUP)
    # Every element can be opened, and closed unless it is void.
    for name in PLAIN:
        assert f"<{name}>" in MARKUP and f"</{name}>" in MARKUP
    assert all(f"</{name}>" not in MARKUP for name in VOID)
    assert all(list(names) == sorted(names) for names in ATTRIBUTES.values())


@pytest.mark.parametrize("index", [-1, 32, 1000])
def test_a_sentinel_outside_its_range_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=f"sentinel {index} "):
        Vocab(10, 20).sentinel(index)


def test_an_unknown_piece_of_markup_has_no_id() -> None:
    with pytest.raises(KeyError):
        Vocab(10, 20).markup_id("<script>")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_size", 11),
        ("text_size", -1),
        ("text_size", "10"),
        ("text_size", None),
        ("image_size", 21),
        ("image_size", True),
        ("sentinels", 31),
        ("specials", [*SPECIALS[:-1], "<reserved:9>"]),
        ("specials", [*SPECIALS, "<more>"]),
        ("markup", [*MARKUP[1:], MARKUP[0]]),
        ("markup", [*MARKUP, "<script>"]),
        ("size", 1),
    ],
)
def test_other_ranges_than_this_versions_are_refused(key: str, value: object) -> None:
    saved = Vocab(10, 20).to_dict()
    with pytest.raises(ModelError, match=r"vocab\.json") as caught:
        Vocab.from_dict(saved | {key: value})
    assert caught.value.code == "bad_checkpoint" and "\n" not in str(caught.value)
    del saved[key]
    with pytest.raises(ModelError, match=r"vocab\.json"):
        Vocab.from_dict(saved)


@given(st.text(st.characters(), max_size=40))
@example("<eoss>")
@example("<mask:0><mask><pad><eod><reserved:0>")
@example('<p> <img alt="" src=">')
@example("\x00")
@example("\ud800")
@example("a\udfffb")
@settings(max_examples=100, derandomize=True, deadline=None)
def test_text_never_leaves_the_text_range(text: str) -> None:
    from cm3kit_tokenizers.sequence import PageTokenizer

    vocab = Vocab(TEXT.size, 7)
    ids = PageTokenizer(TEXT, vocab).text_ids(text)
    assert all(id in vocab.text for id in ids)
    assert bool(ids) == bool(text)
