"""Rows of Parquet files: `html`, interleaved lists, or pairs; see `rows.item`."""

from __future__ import annotations

from collections.abc import Iterator

from cm3kit.data.web.extras import need
from cm3kit.data.web.sources import Item, Piece, SourceOptions, files, source
from cm3kit.data.web.sources.rows import item


@source("parquet")
class Parquet:
    """A piece is a run of rows of one file."""

    kind = "parquet"

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """Runs of at most `pages` rows."""
        parquet = need("pyarrow.parquet", "web", "Reading Parquet")
        found = []
        for name in files(place, (".parquet",)):
            try:
                rows = parquet.read_metadata(name).num_rows
            except (OSError, ValueError):
                rows = 1  # its one item says that it is unreadable
            starts = range(0, rows, options.pages)
            found += [Piece(name, start=at, stop=min(rows, at + options.pages)) for at in starts]
        return found

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """Rows, a batch at a time; the row groups before the piece are not read."""
        parquet = need("pyarrow.parquet", "web", "Reading Parquet")
        number = 0
        try:
            with parquet.ParquetFile(piece.place) as file:
                for group in range(file.num_row_groups):
                    size = file.metadata.row_group(group).num_rows
                    if number + size <= piece.start or number >= (piece.stop or number + 1):
                        number += size
                        continue
                    for batch in file.iter_batches(batch_size=16, row_groups=[group]):
                        for row in batch.to_pylist():
                            if piece.start <= number < (piece.stop or number + 1):
                                yield item(f"{piece.place}#{number}", row, self.kind, options)
                            number += 1
        except (OSError, ValueError) as error:
            yield Item(f"{piece.place}#{number}", None, reason="unreadable", detail=str(error))
