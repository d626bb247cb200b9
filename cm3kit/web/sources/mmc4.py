"""MMC4 (arXiv:2304.06939) and other JSON lines with one page per line; see `rows.item`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator

from cm3kit.web.sources import Item, Piece, SourceOptions, files, source
from cm3kit.web.sources.rows import item
from cm3kit_tokenizers.disguise import disguise

MAX_LINE = 64 * 2**20


@source("mmc4")
class Lines:
    """A piece is a file; a line is a page."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """One piece per file."""
        return [Piece(name) for name in files(place, (".jsonl", ".jsonl.gz"))]

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """Lines in order; a malformed or overlong line is reported, and reading continues."""
        number = -1
        if what := _disguise(piece.place):
            yield Item(f"{piece.place}#0", None, reason="unreadable", detail=f"the file {what}")
            return
        opened = gzip.open(piece.place) if piece.place.endswith(".gz") else open(piece.place, "rb")
        try:
            with opened as file:
                while line := file.readline(MAX_LINE):
                    number += 1
                    key = f"{piece.place}#{number}"
                    if len(line) == MAX_LINE and not line.endswith(b"\n"):
                        while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                            pass
                        yield Item(
                            key, None, reason="page_too_large", detail=f"a line over {MAX_LINE:,} bytes"
                        )
                    elif line.strip():
                        yield _line(key, line, options)
        except (OSError, EOFError, zlib.error) as error:
            yield Item(f"{piece.place}#{number + 1}", None, reason="unreadable", detail=str(error))


def _disguise(place: str) -> str:
    """The real type of a file that is not JSON lines or not compressed as its name says."""
    with open(place, "rb") as file:
        head = file.read(4096)
    packed = head.startswith(b"\x1f\x8b")
    return (
        "" if packed and place.endswith(".gz") else "" if head.lstrip().startswith(b"{") else disguise(head)
    )


def _line(key: str, line: bytes, options: SourceOptions) -> Item:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("the line is not a JSON object")
    except (ValueError, RecursionError) as error:
        return Item(key, None, reason="unreadable", detail=str(error))
    return item(key, row, "mmc4", options)
