"""Pictures with captions: CC3M's lines of caption, tab, address, or a table with a header."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import chain

from cm3kit.data.web.sources import Item, Piece, SourceOptions, files, source
from cm3kit.data.web.sources.rows import CAPTIONS, PICTURES, item


@source("pairs")
class Pairs:
    """A piece is a file; a line is a page of one picture."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """One a file."""
        return [Piece(name) for name in files(place, (".tsv", ".csv"))]

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """Lines in turn; without a header the columns are `caption` and `url`."""
        tabs = piece.place.lower().endswith(".tsv")
        csv.field_size_limit(min(sys.maxsize, 2**24))
        number = 0
        try:
            with open(piece.place, encoding="utf-8", errors="replace", newline="") as file:
                style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"delimiter": ","}
                lines = csv.reader(file, **style)
                first = next(lines, [])
                named = set(first) & {*CAPTIONS, *options.columns.values()} and set(first) & {
                    *PICTURES, *options.columns.values(),
                }  # fmt: skip
                header = first if named else ["caption", "url"]
                for number, line in enumerate(lines if named else chain([first], lines)):
                    row = dict(zip(header, line, strict=False))
                    yield item(f"{piece.place}#{number}", row, "pairs", options)
        except (OSError, csv.Error) as error:
            yield Item(f"{piece.place}#{number + 1}", None, reason="unreadable", detail=str(error))
