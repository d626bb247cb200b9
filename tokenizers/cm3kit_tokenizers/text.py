"""Byte-level BPE with Hugging Face tokenizers: any text ↔ ids, lossless and without special tokens."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cm3kit_tokenizers.errors import ModelError

FILE = "tokenizer.json"
_SURROGATES = re.compile("[\ud800-\udfff]")
# GPT-2's pattern (openai/gpt-2, encoder.py) for ASCII text. In tokenizers that split only by it, merges do not
# cross its matches.
_WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
# In any text, the pattern cuts before a space between two characters that are none.
_SPACED = re.compile(r"(?<=\S)(?= \S)")
_REMEMBERED, _LONGEST = 2**16, 64


class _Words(dict[str, list[int]]):
    """Cache of the ids of words, counted from `start`: most words of a corpus repeat, and merging is the slow step."""

    def __init__(self, tokenizer: Tokenizer, start: int) -> None:
        super().__init__()
        self._tokenizer, self._start = tokenizer, start

    def __missing__(self, word: str) -> list[int]:
        found = self._tokenizer.encode(_SURROGATES.sub("\ufffd", word)).ids
        ids = [self._start + each for each in found]
        if len(word) <= _LONGEST:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[word] = ids
        return ids


class TextTokenizer:
    """Text ↔ ids `0 … size − 1`. No string is special: markup and sentinels are outside of this range."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size()
        self._cuts_alike = _cuts_as_gpt2(tokenizer)
        self._words: dict[int, _Words] = {}

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> TextTokenizer:
        """Learn at most `size` tokens from texts, including all 256 bytes."""
        tokenizer = _empty()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
            min_frequency=2,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Load a saved tokenizer; ModelError if the file is damaged or not byte-level without specials."""
        path = folder / FILE
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:
            raise ModelError(f"{path} cannot be opened: {error}.", code="bad_checkpoint") from error
        if tokenizer.get_added_tokens_decoder():
            raise ModelError(f"{path} has special tokens; text could inject them.", code="bad_checkpoint")
        if not _is_lossless(_steps(tokenizer)):
            raise ModelError(
                f"{path} is not a lossless byte-level BPE; train one with: cm3kit train text.",
                code="bad_checkpoint",
            )
        tokens = tokenizer.get_vocab()
        if (
            sorted(tokens.values()) != list(range(len(tokens)))
            or not _bytes_by_letter().keys() <= tokens.keys()
        ):
            raise ModelError(f"{path} lacks ids or bytes; text would be lost.", code="bad_checkpoint")
        return cls(tokenizer)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        (folder / FILE).write_text(self._tokenizer.to_str(), encoding="utf-8")

    def encode(self, text: str, start: int = 0) -> list[int]:
        """Ids of a text, counted from `start`; lone surrogates become U+FFFD."""
        words = self._words.get(start)
        if words is None:
            words = self._words[start] = _Words(self._tokenizer, start)
        # Words with other characters, and tokenizers with other patterns, are not split here: only the library can
        # split them.
        if not self._cuts_alike:
            return [*words[text]]
        if text.isascii():
            return list(chain.from_iterable(map(words.__getitem__, _WORDS.findall(text))))
        ids: list[int] = []
        for part in _SPACED.split(text):
            ids += (
                chain.from_iterable(map(words.__getitem__, _WORDS.findall(part)))
                if part.isascii()
                else words[part]
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; broken UTF-8 becomes U+FFFD."""
        return b"".join(self.pieces[each] for each in ids).decode("utf-8", "replace")

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that determines the ids of a text."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of each id."""
        letters = _bytes_by_letter()
        tokens = (str(self._tokenizer.id_to_token(each)) for each in range(self.size))
        return [bytes(letters[letter] for letter in token) for token in tokens]

    @cached_property
    def continues(self) -> list[bool]:
        """Per id, whether it starts inside a UTF-8 character, so that no span may be cut before it."""
        return [0x80 <= piece[0] < 0xC0 for piece in self.pieces]


def _empty() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _steps(tokenizer: Tokenizer) -> dict[str, Any]:
    """All processing steps of a tokenizer except its vocabulary and merges."""
    steps: dict[str, Any] = json.loads(tokenizer.to_str())
    for learnt in ("vocab", "merges"):
        steps["model"].pop(learnt, None)
    return steps


def _cuts_as_gpt2(tokenizer: Tokenizer) -> bool:
    """Whether words are split only by GPT-2's pattern, as in `TextTokenizer.train`."""
    cutter = tokenizer.pre_tokenizer
    told: dict[str, Any] = json.loads(cutter.__getstate__()) if cutter is not None else {}
    return told.get("type") == "ByteLevel" and bool(told.get("use_regex"))


def plain_steps() -> dict[str, Any]:
    """All processing steps of a tokenizer of `TextTokenizer.train` except its vocabulary and merges."""
    return _steps(_empty())


def splits_into_bytes(cutter: Any) -> bool:
    """Whether a pre-tokenizer (as JSON) splits text into words and bytes without loss."""
    if not isinstance(cutter, dict):
        return False
    *cuts, last = cutter["pretokenizers"] if cutter.get("type") == "Sequence" else [cutter]
    return last.get("type") == "ByteLevel" and all(
        cut.get("type") in ("Split", "Digits", "Punctuation") and cut.get("behavior") != "Removed"
        for cut in cuts
    )


def _is_lossless(steps: dict[str, Any]) -> bool:
    """Whether the steps equal those of training, except for the word splitting."""
    cutter = steps.pop("pre_tokenizer")
    steps["model"]["ignore_merges"] = False
    plain = plain_steps()
    plain.pop("pre_tokenizer")
    prefixed = '"add_prefix_space": true' in json.dumps(cutter)
    return steps == plain and splits_into_bytes(cutter) and not prefixed


def byte_letters() -> set[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    return {letter for _, letter in _letters()}


def _bytes_by_letter() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, inverted (openai/gpt-2, encoder.py)."""
    return {letter: byte for byte, letter in _letters()}


def _letters() -> Iterator[tuple[int, str]]:
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = 0
    for byte in range(256):
        if byte in shown:
            yield byte, chr(byte)
        else:
            yield byte, chr(256 + hidden)
            hidden += 1
