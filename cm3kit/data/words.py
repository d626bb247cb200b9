"""The words of a corpus, kept beside its text tokenizer: a prompt with others asks for what was never seen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from cm3kit.publish import write_atomic

NAME, MOST, ALL = "words.txt", 200_000, "# all words"
_WORD = re.compile(r"[^\W\d_]+")


def words_of(text: str) -> list[str]:
    """Words of a text, as they are compared.

    >>> words_of("Two red Apples, 3")
    ['two', 'red', 'apples']
    """
    return [word.casefold() for word in _WORD.findall(text)]


@dataclass
class Words:
    """Counts words that go by."""

    counts: Counter[str] = field(default_factory=Counter)

    def heard(self, texts: Iterable[str]) -> Iterator[str]:
        """The same texts, whose words are counted."""
        for text in texts:
            self.counts.update(words_of(text))
            yield text

    def save(self, folder: Path) -> None:
        """Write the most frequent ones, a line each; the first line says whether these are all."""
        known = sorted(word for word, _ in self.counts.most_common(MOST))
        first = ALL if len(self.counts) <= MOST else f"# the {MOST} most frequent words"
        write_atomic(folder / NAME, "\n".join([first, *known, ""]).encode(), force=True)


def unknown_words(folder: Path, prompt: str) -> list[str]:
    """Words of a prompt that the corpus of a text tokenizer in this folder does not have, in order.

    None where the folder does not say which words there are, or not all of them.
    """
    path = folder / NAME
    try:
        words = _known(path, path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return []
    return [] if words is None else [word for word in dict.fromkeys(words_of(prompt)) if word not in words]


@lru_cache(maxsize=8)
def _known(path: Path, changed: int) -> frozenset[str] | None:
    """The words of a file as it is since `changed`; None where it does not have all."""
    first, *known = path.read_text(encoding="utf-8").split("\n")
    return frozenset(known) if first == ALL else None
