"""Definitions and is-a links of nouns from the files of WordNet 3.0."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cm3kit_tokenizers.errors import DataError


@dataclass(frozen=True, slots=True)
class Sense:
    """One meaning: its definition without examples, its words, and its hypernym."""

    definition: str
    words: tuple[str, ...]
    kind_of: str | None


class WordNet:
    """Noun senses by lemma, read by byte offset (wndb(5WN))."""

    def __init__(self, folder: Path) -> None:
        index, data = folder / "index.noun", folder / "data.noun"
        if not (index.is_file() and data.is_file()):
            raise DataError(
                f"{folder} holds no index.noun; it comes from the package wordnet-base.", code="no_file"
            )
        self._data = data.read_bytes()
        self._offsets: dict[str, list[int]] = {}
        for line in index.read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                fields = line.split()
                self._offsets[fields[0].replace("_", " ")] = [int(each) for each in fields[-int(fields[2]) :]]

    def senses(self, lemma: str) -> list[Sense]:
        """Meanings of a noun, most frequent first; those of its singular come first."""
        lemma = lemma.lower()
        forms = dict.fromkeys(
            (re.sub("ies$", "y", lemma), re.sub("s$", "", lemma), re.sub("es$", "", lemma), lemma)
        )
        return [self._sense(offset) for form in forms for offset in self._offsets.get(form, ())]

    def all(self) -> Iterator[Sense]:
        """Every meaning of a noun, once, in the order of the file."""
        at = 0
        for line in self._data.splitlines(keepends=True):
            if not line.startswith(b"  "):  # the licence
                yield self._sense(at)
            at += len(line)

    def best(self, name: str, keywords: Iterable[str]) -> Sense | None:
        """The meaning of a name's head noun that shares the most words with its keywords."""
        words = head_words(name)
        hints = {word for keyword in keywords for word in keyword.lower().split()} - set(words)
        for start in range(len(words)):
            if senses := self.senses(" ".join(words[start:])):
                return max(senses, key=lambda each: len(hints & set(re.findall(r"[a-z]+", _text(each)))))
        return None

    def _sense(self, offset: int) -> Sense:
        line = self._data[offset : self._data.index(b"\n", offset)].decode("utf-8")
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        count = int(fields[3], 16)
        words = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
        pointers = fields[4 + 2 * count + 1 :]
        parents = [int(pointers[i + 1]) for i in range(0, len(pointers) - 3, 4) if pointers[i] in ("@", "@i")]
        parent = self._first_word(parents[0]) if parents else None
        return Sense(gloss.split('; "')[0].strip().rstrip(";"), words, parent)

    def _first_word(self, offset: int) -> str:
        return self._data[offset : offset + 200].split()[4].decode("utf-8").replace("_", " ")


def head_words(name: str) -> list[str]:
    """The words of a name up to its first preposition or participle: `cat` of `grinning cat with smiling eyes`."""
    words = name.split()
    ends = [i for i, word in enumerate(words) if i and (word in _LINKS or word.endswith("ing"))]
    return words[: ends[0]] if ends else words


_LINKS = frozenset(("with", "in", "on", "of", "over", "without", "from", "and", "behind", "for"))


def _text(sense: Sense) -> str:
    return f"{sense.definition} {sense.kind_of or ''} {' '.join(sense.words)}".lower()
