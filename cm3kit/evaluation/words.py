"""Similarity of filled words to the right ones."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """Shares over gaps: exactly right, mean edit similarity (1 = equal), ended with an end id."""

    count: int
    exact: float
    similarity: float
    ended: float


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance in characters."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def compare(filled: Sequence[str], right: Sequence[str], ended: Sequence[bool]) -> Match:
    """Compare fills with the original text; white space at the ends is ignored."""
    pairs = [(a.strip(), b.strip()) for a, b in zip(filled, right, strict=True)]
    alike = [1 - edit_distance(a, b) / max(1, len(a), len(b)) for a, b in pairs]
    count = max(1, len(pairs))
    return Match(len(pairs), sum(a == b for a, b in pairs) / count, sum(alike) / count, sum(ended) / count)


def same_caption(text: str, name: str, artists: Iterable[str]) -> bool:
    """Whether a caption is the name, but for case, punctuation and who drew it."""

    def bare(words: str) -> str:
        return " ".join(re.sub(r"[\W_]+", " ", html.unescape(words).lower()).split())

    found = bare(text)
    for artist in artists:
        found = re.sub(rf" (by )?{re.escape(bare(artist))}$", "", found)
    return found == bare(name)
