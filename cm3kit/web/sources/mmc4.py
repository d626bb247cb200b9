"""MMC4 (arXiv:2304.06939) and other JSON lines with one page per line; see `rows.item`."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import IO, cast

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
        try:
            with _opened(piece.place) as file:
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


def _opened(place: str) -> IO[bytes]:
    """The lines of a file in UTF-8; UTF-16 is what PowerShell writes, into small files."""
    if place.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(place))
    file = open(place, "rb")
    if file.read(2) not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        file.seek(0)
        return file
    with file:
        file.seek(0)
        return io.BytesIO(file.read().decode("utf-16", "replace").encode("utf-8", "replace"))


def _disguise(place: str) -> str:
    """The real type of a file that is not JSON lines or not compressed as its name says."""
    with open(place, "rb") as file:
        head = file.read(4096)
    packed = head.startswith(b"\x1f\x8b") and place.endswith(".gz")
    rows = head.lstrip().startswith(b"{") and b"\0" not in head[:2]
    return "" if packed or rows else disguise(head)


def _line(key: str, line: bytes, options: SourceOptions) -> Item:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("the line is not a JSON object")
    except (ValueError, RecursionError) as error:
        return Item(key, None, reason="unreadable", detail=str(error))
    return item(key, row, "mmc4", options)
