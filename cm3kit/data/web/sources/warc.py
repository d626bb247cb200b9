"""WARC files as crawlers write them: pages and pictures are responses of their own, joined by address.

Read by fastwarc, or by warcio where that is absent.
"""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from cm3kit.data.web.extras import need
from cm3kit.data.web.reasons import Refused
from cm3kit.data.web.record import About
from cm3kit.data.web.sources import Item, Piece, SourceOptions, files, source
from cm3kit_tokenizers.html.spans import MAX_BYTES
from cm3kit_tokenizers.pictures import MAX_BYTES as PICTURE_BYTES
from cm3kit_tokenizers.pictures import resolve_src

_BROKEN = (OSError, EOFError, ValueError, zlib.error, RuntimeError)
_LINE, _BLOCK = 2**16, 2**20
_HTML = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response; `read` gives at most that many bytes of its body, its transfer encoding undone."""

    offset: int
    url: str
    date: str
    status: int
    kind: str
    headers: Mapping[str, str]
    read: Callable[[int], bytes]


@source("warc")
class Warc:
    """A piece is a file."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """One a file."""
        return [Piece(name) for name in files(place, (".warc", ".warc.gz"))]

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """Responses that hold HTML; a damaged file gives what is before the damage, and one item that says so."""
        offsets: dict[str, int] = {}
        end = ""
        try:
            for each in responses(piece.place):
                if each.kind.startswith("image/") and each.status == 200:
                    offsets.setdefault(each.url, each.offset)
        except _BROKEN as error:
            end = str(error) or type(error).__name__
        find = _Find(piece.place, offsets)
        offset = 0
        try:
            for each in responses(piece.place):
                offset = each.offset
                if each.kind in _HTML and each.status == 200:
                    told = About(each.url, "warc", each.date, each.headers)
                    yield Item(f"{piece.place}#{offset}", each.read(MAX_BYTES + 1), find, told)
        except _BROKEN as error:
            end = str(error) or type(error).__name__
        if end or (end := truncated(piece.place, offset)):
            yield Item(f"{piece.place}#after {offset}", None, reason="unreadable", detail=end)


class _Find:
    def __init__(self, place: str, offsets: Mapping[str, int]) -> None:
        self.place, self.offsets = place, offsets

    def __call__(self, address: str) -> bytes:
        """The body of the response at an address."""
        if address[:5].lower() == "data:":
            return resolve_src(address, None)
        offset = self.offsets.get(address)
        if offset is None:
            raise Refused("remote")
        for each in responses(self.place, offset):
            return each.read(PICTURE_BYTES + 1)
        raise Refused("bad_picture")


def responses(place: str, offset: int = 0) -> Iterator[Response]:
    """Responses of a file from an offset on, by whichever reader is installed."""
    if importlib.util.find_spec("fastwarc") is not None:
        return _fastwarc(place, offset)
    need("warcio", "warc", "Reading WARC")
    return _warcio(place, offset)


def _fastwarc(place: str, offset: int) -> Iterator[Response]:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    with open(place, "rb") as file:
        file.seek(offset)
        base = offset
        for record in ArchiveIterator(
            file, record_types=WarcRecordType.response, parse_http=True, auto_decode="all"
        ):
            if record.http_headers is None:
                continue
            headers = {name.lower(): value for name, value in record.http_headers.items()}
            yield Response(
                base + record.stream_pos, str(record.headers.get("WARC-Target-URI", "")),
                str(record.headers.get("WARC-Date", "")), int(record.http_headers.status_code or 0),
                _kind(headers), headers, record.reader.read,
            )  # fmt: skip


def _warcio(place: str, offset: int) -> Iterator[Response]:
    from warcio.archiveiterator import ArchiveIterator

    with open(place, "rb") as file:
        file.seek(offset)
        found: Any = ArchiveIterator(file)
        for record in found:
            if record.rec_type != "response" or record.http_headers is None:
                continue
            headers = {name.lower(): value for name, value in record.http_headers.headers}
            code = record.http_headers.get_statuscode()
            yield Response(
                offset + found.offset if offset else found.offset,
                record.rec_headers.get_header("WARC-Target-URI") or "",
                record.rec_headers.get_header("WARC-Date") or "", int(code) if code.isdigit() else 0,
                _kind(headers), headers, record.content_stream().read,
            )  # fmt: skip


def truncated(place: str, offset: int) -> str:
    """What is wrong with the end of a file, or nothing: readers pass over a last record that is cut off.

    Args:
        offset: where a record starts; the records from there on are walked.
    """
    try:
        with open(place, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(offset)
            file: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            while line := file.readline(_LINE):
                length = 0
                while line.strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.strip().lower() == b"content-length" else length
                    if not (line := file.readline(_LINE)).endswith(b"\n"):
                        return "a record's header is cut off"
                while length:
                    if not (read := len(file.read(min(length, _BLOCK)))):
                        return "a record is cut off"
                    length -= read
                file.readline(_LINE)
                file.readline(_LINE)
    except _BROKEN as error:
        return str(error) or type(error).__name__
    return ""


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").split(";")[0].strip().lower()
