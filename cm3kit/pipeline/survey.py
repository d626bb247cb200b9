"""Counts of a prepared corpus: pages, pictures, sizes, text, languages; and a sample of it in ids."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from cm3kit.config import Settings
from cm3kit.web.pack import encode_page
from cm3kit.web.parts import audit_of, part_folders, read_part
from cm3kit.web.reasons import NOTES, REASONS
from cm3kit.web.record import read_pieces
from cm3kit_tokenizers.errors import DataError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab

LEAST_PAGES, LEAST_PICTURES = 20, 16
SAMPLE_PAGES, SAMPLE_BYTES = 200, 3_000_000


class Survey(Settings):
    """What there is.

    Attributes:
        pages: kept, `dropped` those that are not, by reason.
        on_pages: pictures on these pages, one that is there twice counted twice; `pictures` are different ones, and
            `lost` those that are not kept, by reason.
        sides: the longer side in pixels of a tenth, a half and nine tenths of the pictures at most, as they are stored.
        chars: of text, `html_bytes` those of the pages as they are trained on.
        languages: pages by language, as they say themselves or their text tells.
    """

    pages: int
    dropped: dict[str, int] = Field(default_factory=dict)
    on_pages: int
    pictures: int
    lost: dict[str, int] = Field(default_factory=dict)
    sides: tuple[int, int, int] = (0, 0, 0)
    chars: int
    html_bytes: int
    languages: dict[str, int] = Field(default_factory=dict)

    def lines(self) -> list[str]:
        """The survey as lines of text."""
        dropped, lost = sum(self.dropped.values()), sum(self.lost.values())
        named = ", ".join(f"{name} {count:,}" for name, count in list(self.languages.items())[:5])
        low, middle, high = self.sides
        return [
            f"pages      {self.pages:,} kept, {dropped:,} dropped{_reasons(self.dropped)}",
            f"pictures   {self.pictures:,} ({self.on_pages:,} times on pages), {lost:,} dropped{_reasons(self.lost)}",
            f"sizes      longer side of {middle} pixels as they are stored ({low} to {high} of four in five)",
            f"text       {self.chars:,} characters, {self.html_bytes:,} bytes with markup",
            f"languages  {named or 'not told'}",
        ]

    def check(self, place: str) -> None:
        """DataError (`bad_data`) where that is too little to train on."""
        why = f"; dropped: {_listed(self.dropped)}" if self.dropped else ""
        if self.pages < LEAST_PAGES:
            raise DataError(
                f"{place} has {self.pages} pages that can be used, and a model needs {LEAST_PAGES} at least{why}.",
                code="bad_data",
            )
        why = f"; dropped: {_listed(self.lost)}" if self.lost else ""
        if self.pictures < LEAST_PICTURES:
            raise DataError(
                f"{place} has {self.pictures} pictures that can be used, and an image tokenizer needs"
                f" {LEAST_PICTURES} at least{why}.",
                code="bad_data",
            )


def _reasons(counts: dict[str, int]) -> str:
    return f" ({_listed(counts)})" if counts else ""


def _listed(counts: dict[str, int]) -> str:
    shown = sorted(counts.items(), key=lambda item: -item[1])[:4]
    return "; ".join(f"{count:,} {REASONS.get(reason, reason)}" for reason, count in shown)


def survey(prepared: Path) -> Survey:
    """Count what a folder that `data prepare` made holds; DataError if there are no parts."""
    audit = audit_of(prepared)
    sides: dict[str, int] = {}
    languages: Counter[str] = Counter()
    for part in part_folders(prepared):
        for row in read_part(part, ["lang", "pictures"]):
            languages[row["lang"].split("-")[0].lower() or "not told"] += 1
            sides |= {each["sha256"]: max(each["width"], each["height"]) for each in row["pictures"]}
    ordered = sorted(sides.values()) or [0]
    at = [ordered[int(share * (len(ordered) - 1))] for share in (0.1, 0.5, 0.9)]
    pages, pictures = audit["pages"], audit["pictures"]
    return Survey(
        pages=pages.get("kept", 0),
        dropped={name: count for name, count in pages.items() if name not in ("in", "kept")},
        on_pages=pictures.get("kept", 0),
        pictures=len(sides),
        lost={name: count for name, count in pictures.items() if name != "kept" and name not in NOTES},
        sides=(at[0], at[1], at[2]),
        chars=audit["sums"].get("chars", 0),
        html_bytes=audit["sums"].get("html_bytes", 0),
        languages=dict(languages.most_common()),
    )


@dataclass(frozen=True)
class Sample:
    """Some pages of a corpus in ids of a tokenizer that was learnt from them, and what that took.

    Attributes:
        documents: ids, in which a picture is `codes` ids of the first code.
        html_bytes: of these pages.
        learning: seconds per byte of text that a text tokenizer takes to learn, and `reading` per byte of page that it
            takes to turn pages into ids.
    """

    documents: tuple[list[int], ...]
    html_bytes: int
    text: TextTokenizer
    vocab: Vocab
    learning: float
    reading: float

    def ids(self, html_bytes: int) -> int:
        """About how many ids a corpus of so many bytes has."""
        return int(sum(map(len, self.documents)) / self.html_bytes * html_bytes)

    def sliced(self, window: int) -> float:
        """Share of pages that are longer than a window."""
        return sum(len(each) + 2 > window for each in self.documents) / len(self.documents)


def sample(prepared: Path, text: TextTokenizer | None, size: int, codes: int, code_count: int) -> Sample:
    """Read some pages, spread over the parts.

    Args:
        text: a finished tokenizer; else one of `size` ids is learnt from these pages.
        codes: of a picture, of `code_count` that there are.
    """
    pages = [row["html"] for row in _some(prepared)]
    learning = 0.0
    if text is None:
        started = time.perf_counter()
        words = [piece for html in pages for piece in read_pieces(html) if type(piece) is str]
        text = TextTokenizer.train(words, size)
        learning = (time.perf_counter() - started) / sum(map(len, pages))
    tokenizer = PageTokenizer(text, Vocab(text.size, code_count))
    row = [0] * codes
    started = time.perf_counter()
    documents = tuple(encode_page(html, tokenizer, lambda picture: row) for html in pages)
    reading = (time.perf_counter() - started) / sum(map(len, pages))
    size = sum(len(html.encode()) for html in pages)
    return Sample(documents, size, text, tokenizer.vocab, learning, reading)


def _some(prepared: Path) -> list[dict[str, Any]]:
    parts = part_folders(prepared)
    chosen = parts[:: max(1, len(parts) // 20)]
    out: list[dict[str, Any]] = []
    size = 0
    for part in chosen:
        rows = list(read_part(part, ["html"]))
        for row in rows[:: max(1, len(rows) * len(chosen) // SAMPLE_PAGES)]:
            out.append(row)
            size += len(row["html"])
            if size > SAMPLE_BYTES:
                return out
    return out
