"""Hugging Face data sets: a folder of `save_to_disk`, or a name on the Hub; see `rows.item` for the columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cm3kit.extras import need
from cm3kit.web.sources import Item, Piece, SourceOptions, source
from cm3kit.web.sources.rows import item


@source("huggingface")
class HuggingFace:
    """A piece is a range of rows of one split."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """Ranges of at most `pages` rows."""
        rows, step = len(_open(place, options.split)), options.pages
        return [Piece(place, start=at, stop=min(rows, at + step)) for at in range(0, rows, step)]

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """Rows in order, pictures as their stored bytes."""
        rows = _open(piece.place, options.split)
        for number in range(piece.start, piece.stop or len(rows)):
            key = f"{piece.place}#{number}"
            try:
                row = rows[number]
            except (OSError, ValueError, OverflowError, RuntimeError) as error:
                yield Item(key, None, reason="unreadable", detail=str(error))
            else:
                yield item(key, row, "huggingface", options)


def _open(place: str, split: str) -> Any:
    datasets = need("datasets", "huggingface", "Reading Hugging Face data sets")
    found = (
        datasets.load_from_disk(place) if Path(place).exists() else datasets.load_dataset(place, split=split)
    )
    rows = found[split] if isinstance(found, datasets.DatasetDict) else found
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows
