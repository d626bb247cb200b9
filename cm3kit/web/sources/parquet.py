"""Rows of Parquet files: `html`, interleaved lists, pairs or texts; see `rows.item`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
                for row in _rows(batch):
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


def _rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch as Python values; for a row with a value that has none, the reason."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for at in range(batch.num_rows):
            yield _row(batch, at)


def _row(batch: Any, at: int) -> dict[str, Any] | str:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[at].as_py()
        except (ValueError, OverflowError) as error:
            # A point in time that Python cannot express is nothing that a page is made of.
            if not need("pyarrow.types", "web", "Reading Parquet").is_temporal(column.type):
                return f"{name}: {error}"
    return row
