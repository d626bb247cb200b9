"""Prepared pages as training reads them: rows of parts, texts, and which documents are held out.

`cm3kit data prepare` writes them (`data.web.parts` says what else is in the folder).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cm3kit.extras import need
from cm3kit_tokenizers.document import Piece
from cm3kit_tokenizers.errors import DataError
from cm3kit_tokenizers.html.minimal import keep_all, minimal_pieces
from cm3kit_tokenizers.html.scan import scan
from cm3kit_tokenizers.html.spans import parse_tree

PARTS, DOCUMENTS, PICTURES = "parts", "documents.parquet", "pictures"


def is_prepared(folder: Path) -> bool:
    """Whether `cm3kit data prepare` made it."""
    return (folder / PARTS).is_dir() and (folder / "job.json").is_file()


def part_folders(folder: Path) -> list[Path]:
    """The parts that are there, in order; DataError if there are none."""
    found = sorted(each for each in (folder / PARTS).glob("[0-9]*") if each.is_dir())
    if not found:
        raise DataError(
            f"{folder} holds no prepared parts; make some with: cm3kit data prepare.", code="bad_data"
        )
    return found


def read_part(part: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of one part, a few at a time; DataError if the file is damaged."""
    parquet = need("pyarrow.parquet", "web", "Reading records")
    try:
        with parquet.ParquetFile(part / DOCUMENTS) as file:
            for batch in file.iter_batches(batch_size=64, columns=columns):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{part / DOCUMENTS} cannot be read: {error}.", code="bad_data") from error


def read_pieces(html: str) -> list[Piece]:
    """Pieces of a record's `html`, scanned where it is as records are written, else parsed."""
    found = scan(html)
    return minimal_pieces(parse_tree(html, False), (), keep_all) if found is None else found


def held_out(sha256: str, share: float) -> bool:
    """Whether a record with this hash is one of the `share` that training does not see."""
    return int(sha256[:16], 16) < share * 2**64


def texts_of(folder: Path, held: float = 0.0) -> Iterator[str]:
    """The texts of all documents but the share that is held out."""
    for part in part_folders(folder):
        for row in read_part(part, ["html", "sha256"]):
            if not held_out(row["sha256"], held):
                yield from (piece for piece in read_pieces(row["html"]) if type(piece) is str)
