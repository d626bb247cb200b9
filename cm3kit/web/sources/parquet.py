"""Rows of Parquet files: `html`, interleaved lists, pairs or texts; see `rows.item`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cm3kit.arrow import python_rows
from cm3kit.extras import need
from cm3kit.web.sources import Item, Piece, SourceOptions, files, source
from cm3kit.web.sources.rows import item
from cm3kit_tokenizers.disguise import disguise


@source("parquet")
class Parquet:
    """A piece is a range of rows of one file."""

    kind = "parquet"

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """Ranges of at most `pages` rows."""
        parquet = need("pyarrow.parquet", "web", "Reading Parquet")
        found = []
        for name in files(place, (".parquet",)):
            try:
                rows = parquet.read_metadata(name).num_rows
            except (OSError, ValueError):
                rows = 1  # its only item reports that it is unreadable
            starts = range(0, rows, options.pages)
            found += [Piece(name, start=at, stop=min(rows, at + options.pages)) for at in starts]
        return found

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """Rows in batches; every row of a damaged row group is reported."""
        parquet = need("pyarrow.parquet", "web", "Reading Parquet")
        try:
            file = parquet.ParquetFile(piece.place)
        except (OSError, ValueError) as error:
            with open(piece.place, "rb") as raw:
                what = disguise(raw.read(4096))
            detail = f"the file {what}" if what else str(error)
            yield Item(f"{piece.place}#{piece.start}", None, reason="unreadable", detail=detail)
            return
        with file:
            first = 0
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                wanted = range(max(first, piece.start), last if piece.stop is None else min(last, piece.stop))
                if wanted:
                    yield from self._group(file, group, first, wanted, piece, options)
                first = last

    def _group(
        self, file: Any, group: int, first: int, wanted: range, piece: Piece, options: SourceOptions
    ) -> Iterator[Item]:
        number, detail = first, "the row group is damaged"
        try:
            for batch in file.iter_batches(batch_size=16, row_groups=[group]):
                for row in python_rows(batch):
                    key = f"{piece.place}#{number}"
                    if number in wanted:
                        yield (
                            Item(key, None, reason="unreadable", detail=row)
                            if isinstance(row, str)
                            else item(key, row, self.kind, options)
                        )
                    number += 1
        except (OSError, ValueError, RuntimeError) as error:
            detail = str(error)
        for left in range(max(number, wanted.start), wanted.stop):
            yield Item(f"{piece.place}#{left}", None, reason="unreadable", detail=detail)
