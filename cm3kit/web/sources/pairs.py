"""Pictures with captions: CC3M's lines of caption, tab, URL; or a table with or without a header."""

from __future__ import annotations

from collections.abc import Iterator

from cm3kit.web.sources import Item, Piece, SourceOptions, files, source
from cm3kit.web.sources.rows import item
from cm3kit.web.sources.tables import look, read


@source("pairs")
class Pairs:
    """A piece is a file; a row is a page of one picture."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """One piece per file; DataError if the columns of a file are ambiguous."""
        found = files(place, (".tsv", ".csv"))
        for name in found:
            look(name, tuple(options.columns.values()))
        return [Piece(name) for name in found]

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """Rows in order; a malformed line is reported, and reading continues."""
        number = -1
        try:
            for row in read(piece.place, look(piece.place, tuple(options.columns.values()))):
                number += 1
                key = f"{piece.place}#{number}"
                if isinstance(row, str):
                    yield Item(key, None, reason="bad_row", detail=row)
                else:
                    yield item(key, row, "pairs", options)
        except OSError as error:
            yield Item(f"{piece.place}#{number + 1}", None, reason="unreadable", detail=str(error))
