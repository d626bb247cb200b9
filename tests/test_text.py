"""Text and pages as ids and back, without loss."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from cm3kit_tokenizers.borrowed import borrow
from cm3kit_tokenizers.document import Gap, Image, Markup, Node, Picture, Text
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.sequence import PageTokenizer, healed
from cm3kit_tokenizers.text import FILE, TextTokenizer
from cm3kit_tokenizers.vocab import MARKUP, SPECIALS, Vocab

WORDS = ["a red apple, a green pear; größer, 林檎 😀 and two red apples", "<p> &amp; 'quoted' \x00\n\t  end"]
TEXT = TextTokenizer.train(WORDS * 3, 340)
VOCAB = Vocab(TEXT.size, 50)
PAGES = PageTokenizer(TEXT, VOCAB)
FAST = settings(max_examples=60, derandomize=True, deadline=None)
ANY = st.text(st.characters(), max_size=30)


def as_unicode(text: str) -> str:
    return "".join("\ufffd" if 0xD800 <= ord(each) < 0xE000 else each for each in text)


@given(st.text(st.characters(max_codepoint=127) | st.sampled_from(" \n'ste"), max_size=40) | ANY)
@example("it's  'twas\n\n x\x1c\x0b y 12ab_c ")
@example("it's  \xa0 caf\u00e9 \u00b2 'd")
@FAST
def test_words_that_are_remembered_give_the_ids_of_the_library(text: str) -> None:
    ids = TEXT._tokenizer.encode(as_unicode(text)).ids
    assert TEXT.encode(text) == ids and TEXT.encode(text) == ids
    assert TEXT.encode(text, 7) == [7 + id for id in ids]


@given(ANY)
@example("\ud83d\ude00 \udc00")
@example("  two  spaces  ")
@FAST
def test_text_comes_back_whole(text: str) -> None:
    ids = TEXT.encode(text)
    assert all(0 <= id < TEXT.size for id in ids)
    assert TEXT.decode(ids) == as_unicode(text)
    assert b"".join(TEXT.pieces[id] for id in ids) == as_unicode(text).encode()


def test_merges_are_learnt_and_all_bytes_are_known() -> None:
    assert 256 < TEXT.size <= 340
    assert len(TEXT.encode("a red apple")) < len("a red apple")
    assert {piece for piece in TEXT.pieces if len(piece) == 1} == {bytes([byte]) for byte in range(256)}
    assert len(set(TEXT.pieces)) == TEXT.size


def test_broken_utf8_is_shown_not_raised() -> None:
    byte = TEXT.pieces.index(b"\xc3")
    assert TEXT.decode([byte]) == "\ufffd"
    assert TEXT.decode([*TEXT.encode("a"), byte, *TEXT.encode("b")]) == "a\ufffdb"


def test_continues_marks_ids_that_start_inside_a_character() -> None:
    for piece, inside in zip(TEXT.pieces, TEXT.continues, strict=True):
        # A piece starts a character if some bytes after it, or none, make its first byte one of valid UTF-8.
        starts = any(
            (piece[:1] + more).decode("utf-8", "ignore") != ""
            for more in (
                b"",
                b"\x80",
                b"\x90\x80",
                b"\xa0\x80",
                b"\x80\x80",
                b"\x90\x80\x80",
                b"\x80\x80\x80",
            )
        )
        never = piece[0] in (0xC0, 0xC1) or piece[0] >= 0xF5
        assert inside == (not starts and not never)


@given(ANY)
@FAST
def test_a_cut_before_an_id_that_does_not_continue_keeps_characters_whole(text: str) -> None:
    ids = TEXT.encode(text)
    for place in range(len(ids)):
        whole = TEXT.decode(ids[:place]) + TEXT.decode(ids[place:]) == as_unicode(text)
        assert whole != TEXT.continues[ids[place]]


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    TEXT.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    assert again.pieces == TEXT.pieces
    assert all(again.encode(text) == TEXT.encode(text) for text in WORDS)


def spoil(saved: dict[str, Any], harm: str) -> str:
    special = {"content": "<eoss>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    if harm == "special":
        saved["added_tokens"] = [{"id": TEXT.size, "normalized": False} | special]
    elif harm == "added":
        saved["added_tokens"] = [{"id": TEXT.size, "normalized": False} | special | {"special": False}]
    elif harm == "normalizer":
        saved["normalizer"] = {"type": "Lowercase"}
    elif harm == "truncation":
        cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        saved["truncation"] = cut
    elif harm == "prefix":
        saved["pre_tokenizer"]["add_prefix_space"] = True
    elif harm == "dropout":
        saved["model"]["dropout"] = 0.5
    elif harm == "hole":
        last = max(saved["model"]["vocab"], key=lambda token: saved["model"]["vocab"][token])
        saved["model"]["vocab"][last] += 1
    elif harm == "byte":
        vocab = saved["model"]["vocab"]
        vocab["\u0234"] = vocab.pop("\u0100")
    elif harm == "words":
        saved["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    return json.dumps(saved)[: 200 if harm == "cut" else None]


HARMS = ["special", "added", "normalizer", "truncation", "prefix", "dropout", "hole", "byte", "words", "cut"]


@pytest.mark.parametrize("harm", HARMS)
def test_a_tokenizer_that_would_lose_or_inject_text_is_refused(tmp_path: Path, harm: str) -> None:
    TEXT.save(tmp_path)
    path = tmp_path / FILE
    path.write_text(spoil(json.loads(path.read_text()), harm))
    with pytest.raises(ModelError, match=FILE) as caught:
        TextTokenizer.load(tmp_path)
    assert caught.value.code == "bad_checkpoint"
    assert ("special" in str(caught.value)) == (harm in ("special", "added"))


def test_a_missing_or_empty_tokenizer_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ModelError, match=FILE):
            TextTokenizer.load(tmp_path)
        (tmp_path / FILE).touch()


NODES = st.lists(
    st.one_of(
        st.sampled_from(MARKUP).map(Markup),
        st.text(max_size=8).map(Text),
        st.lists(st.integers(0, 49), max_size=6).map(lambda codes: Image(tuple(codes))),
    ),
    max_size=10,
)


def joined(nodes: list[Node]) -> list[Node]:
    """Neighbours of one kind as one node, empty ones left out."""
    out: list[Node] = []
    for node in nodes:
        match out[-1] if out else None, node:
            case _, Text("") | Image(()):
                pass
            case Text(before), Text(after):
                out[-1] = Text(before + after)
            case Image(before), Image(after):
                out[-1] = Image((*before, *after))
            case _:
                out.append(node)
    return out


@given(NODES)
@FAST
def test_nodes_come_back(nodes: list[Node]) -> None:
    ids = PAGES.encode(nodes)
    assert all(isinstance(id, int) and len(SPECIALS) + 32 <= id < len(VOCAB) for id in ids)
    plain = [id for id in ids if isinstance(id, int)]
    assert PAGES.decode(plain) == joined(nodes)
    # Specials and sentinels vanish.
    mixed = [id for node in nodes for id in (VOCAB.sentinel(3), *PAGES.encode([node]), VOCAB.eod)]
    assert joined(PAGES.decode([id for id in mixed if isinstance(id, int)])) == joined(nodes)


@given(st.lists(st.booleans(), min_size=1, max_size=24))
@FAST
def test_a_region_becomes_runs_of_known_and_missing_codes(missing: list[bool]) -> None:
    codes = [index * 7 % 50 for index in range(len(missing))]
    out = PAGES.encode([Picture("a.png", (0, 0, 1, 1), gap=5)], lambda picture: (codes, missing))
    gaps = [each for each in out if isinstance(each, Gap)]
    assert [gap.part for gap in gaps] == list(range(len(gaps)))
    assert all(gap.index == 5 and gap.kind == "image" and gap.length for gap in gaps)
    assert sum(gap.length or 0 for gap in gaps) == sum(missing)
    spread = [each for one in out for each in ([None] * (one.length or 0) if isinstance(one, Gap) else [one])]
    start = VOCAB.image.start
    assert spread == [None if gone else start + code for code, gone in zip(codes, missing, strict=True)]
    assert not any(isinstance(a, Gap) and isinstance(b, Gap) for a, b in itertools.pairwise(out))


def test_a_whole_picture_is_its_codes() -> None:
    def codes(picture: Picture) -> tuple[list[int], list[bool] | None]:
        return [4, 9], None if picture.gap else [True, False]

    for picture in (Picture("a.png"), Picture("a.png", gap=1)):
        assert PAGES.encode([picture], codes) == PAGES.image_ids([4, 9])


def test_the_space_before_a_gap_is_left_to_the_gap() -> None:
    assert [healed(text) for text in ("a ", "a", "a  ", " ", "", "a\n")] == ["a", "a", "a ", "", "", "a\n"]
    gap = Gap(0, "content")
    assert PAGES.encode([Text("red "), gap, Text(" one ")]) == [
        *PAGES.text_ids("red"), gap, *PAGES.text_ids(" one "),
    ]  # fmt: skip
    assert PAGES.encode([Text("red "), Markup("<p>")])[:-1] == PAGES.text_ids("red ")


# How words are cut: GPT-2, SmolLM2, Qwen2.5 (so Dream), Llama 3, and Chameleon.
MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\d]?\p{L}+|N| ?[^\s\p{L}\d]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTTERS = {
    "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)],
    "smollm2": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
    "qwen2": [
        pre_tokenizers.Split(
            Regex(MODERN.replace("N", r"\p{N}")),
            "isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "llama3": [
        pre_tokenizers.Split(
            Regex(MODERN.replace("N", r"\p{N}{1,3}")),
            "isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "chameleon": [
        pre_tokenizers.Split(Regex("<sentinel:[0-9]+>"), "isolated"),
        pre_tokenizers.Split(Regex("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"), "isolated"),
        pre_tokenizers.Split(Regex("([\t\n]|    |  )"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Punctuation("isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
}


@pytest.mark.parametrize("name", CUTTERS)
def test_a_borrowed_tokenizer_gives_the_tokens_of_its_owner(name: str) -> None:
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(CUTTERS[name])
    theirs.decoder = decoders.ByteLevel()
    texts = [
        "def f(self):\n    return (self.x)\n\n\n(self)  1234",
        "a(self) (self) <p>hello</p>\n\n  x      y\t12 34",
        "Don't .dot .dot, naïve (café) WE'LL go",
    ]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, initial_alphabet=letters, min_frequency=1
    )
    theirs.train_from_iterator(texts * 5, trainer)
    text, own = borrow(theirs.to_str(), name)
    for said in (*texts, *("".join(pair) for pair in zip(texts, reversed(texts), strict=True))):
        assert [own[id] for id in text.encode(said)] == theirs.encode(said).ids
        assert text.decode(text.encode(said)) == said
