"""WARC files of crawlers: pages and pictures are separate responses, joined by URL.

`warc_records` splits the records; fastwarc parses them, or warcio if fastwarc is not installed.
"""

from __future__ import annotations

import importlib.util
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urljoin

from cm3kit.extras import need
from cm3kit.web.reasons import Refused
from cm3kit.web.record import About
from cm3kit.web.sources import Item, Piece, SourceOptions, files, source
from cm3kit.web.sources.warc_records import BROKEN, Damaged, Raw, record, records
from cm3kit.web.urls import normal
from cm3kit_tokenizers.html.spans import MAX_BYTES
from cm3kit_tokenizers.pictures import MAX_BYTES as PICTURE_BYTES
from cm3kit_tokenizers.pictures import resolve_src

_HTML = ("text/html", "application/xhtml+xml")
_PICTURES = ("application/octet-stream", "binary/octet-stream", "")
_MOVED = (301, 302, 303, 307, 308)
_MOST_MOVES = 10


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response; `body` is the payload after transfer decoding."""

    url: str
    date: str
    status: int
    kind: str
    headers: Mapping[str, str]
    body: bytes

    def content(self, most: int) -> bytes:
        """The body after content decoding, truncated to `most` + 1 bytes.

        Raises:
            Damaged: its compression differs from its header.
        """
        body = self.body
        for name in reversed(
            [each.strip().lower() for each in self.headers.get("content-encoding", "").split(",")]
        ):
            if name not in ("", "identity"):
                body = _unpacked(body, name, most)
        return body[: most + 1]


@source("warc")
class Warc:
    """A piece is a file."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """One piece per file."""
        return [Piece(name) for name in files(place, (".warc", ".warc.gz"))]

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """Responses with HTML, responses without a page with a reason, and every unreadable record."""
        find = _Find(piece.place)
        for raw in records(piece.place):
            key = f"{piece.place}#{raw.name}"
            found, error = _parsed(raw)
            if error:
                yield Item(key, None, reason="unreadable", detail=error)
            elif found is not None and found.kind in _HTML:
                yield _item(key, found, find)


def _item(key: str, found: Response, find: _Find) -> Item:
    told = About(normal(found.url), "warc", found.date, found.headers)
    if found.status != 200:
        return Item(key, None, reason="no_page", detail=f"HTTP status {found.status}")
    try:
        return Item(key, found.content(MAX_BYTES), find, told)
    except Damaged as error:
        return Item(key, None, reason="unreadable", detail=str(error))


class _Find:
    """Pictures of one file by URL, following redirects."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._places: dict[str, tuple[int, int]] = {}
        self._moves: dict[str, str] = {}
        for raw in records(place):
            found, _ = _parsed(raw)
            if found is None:
                continue
            url = normal(found.url)
            if found.status == 200 and (found.kind.startswith("image/") or found.kind in _PICTURES):
                self._places.setdefault(url, (raw.offset, raw.number))
            elif found.status in _MOVED and (target := found.headers.get("location")):
                self._moves.setdefault(url, normal(urljoin(url, target.strip())))

    def __call__(self, address: str) -> bytes:
        """The body of the response of a URL."""
        if address[:5].lower() == "data:":
            return resolve_src(address, None)
        url = normal(address)
        for _ in range(_MOST_MOVES):
            if url in self._places or url not in self._moves:
                break
            url = self._moves[url]
        if url not in self._places:
            raise Refused("remote")
        try:
            found, error = _parsed(Raw(0, 0, record(self.place, *self._places[url])))
            if found is None:
                raise Refused("bad_picture", error)
            return found.content(PICTURE_BYTES)
        except (Damaged, *BROKEN) as error:
            raise Refused("bad_picture", str(error)) from None


def _parsed(raw: Raw) -> tuple[Response | None, str]:
    """The response of a record, None for other records; or the reason why it cannot be read."""
    if raw.error:
        return None, raw.error
    try:
        found = parse(raw.data)
        if found is None:
            return None, ""
        if "chunked" in found.headers.get("transfer-encoding", "").lower():
            found = replace(found, body=_joined(found.body))
        return found, ""
    except (Damaged, *BROKEN) as error:
        return None, str(error) or type(error).__name__


def parse(data: bytes) -> Response | None:
    """Parse a record with the installed reader; None if it is not a response."""
    head = data[: max(0, data.find(b"\r\n\r\n"))].lower().replace(b" ", b"")
    if b"warc-type:response" not in head:
        return None
    if importlib.util.find_spec("fastwarc") is not None:
        return fastwarc(data)
    need("warcio", "warc", "Reading WARC")
    return warcio(data)


def fastwarc(data: bytes) -> Response | None:
    """Parse a record with fastwarc."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    kinds = WarcRecordType.response
    stream = io.BytesIO(data + b"\r\n\r\n")
    for found in ArchiveIterator(stream, record_types=kinds, parse_http=True, auto_decode="none"):
        if found.http_headers is None:
            return None
        headers = {name.lower(): value for name, value in found.http_headers.items()}
        return Response(
            str(found.headers.get("WARC-Target-URI", "")), str(found.headers.get("WARC-Date", "")),
            int(found.http_headers.status_code or 0), _kind(headers), headers, found.reader.read(),
        )  # fmt: skip
    raise Damaged("a response cannot be parsed")


def warcio(data: bytes) -> Response | None:
    """Parse a record with warcio."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed
    from warcio.statusandheaders import StatusAndHeadersParserException

    try:
        for found in ArchiveIterator(io.BytesIO(data + b"\r\n\r\n")):
            if found.http_headers is None:
                return None
            headers = {name.lower(): value for name, value in found.http_headers.headers}
            code = found.http_headers.get_statuscode()
            return Response(
                found.rec_headers.get_header("WARC-Target-URI") or "",
                found.rec_headers.get_header("WARC-Date") or "", int(code) if code.isdigit() else 0,
                _kind(headers), headers, found.raw_stream.read(),
            )  # fmt: skip
    except (ArchiveLoadFailed, StatusAndHeadersParserException) as error:
        raise Damaged(str(error)) from None
    raise Damaged("a response cannot be parsed")


def _joined(body: bytes) -> bytes:
    """Decode a chunked body; unchanged if it is not chunked, as some crawlers store it."""
    out: list[bytes] = []
    at = 0
    while at < len(body):
        end = body.find(b"\n", at, at + 4096)
        size = body[at:end].partition(b";")[0].strip() if end >= 0 else b"?"
        try:
            length = int(size, 16) if size and not size.startswith((b"-", b"+")) else -1
        except ValueError:
            length = -1
        if length < 0:
            if not out:
                return body
            raise Damaged("its chunks are damaged")
        if length == 0:
            break
        if end + 1 + length > len(body):
            raise Damaged("its chunks are truncated")
        out.append(body[end + 1 : end + 1 + length])
        at = end + 1 + length
        at += 2 if body[at : at + 2] == b"\r\n" else 1 if body[at : at + 1] == b"\n" else 0
    return b"".join(out)


def _unpacked(body: bytes, name: str, most: int) -> bytes:
    """Undo one content encoding of a body."""
    if not body:
        return body
    try:
        if name in ("gzip", "x-gzip"):
            return _inflated(body, (31,), most)
        if name == "deflate":
            return _inflated(body, (15, -15), most)
        if name in ("br", "zstd"):
            module = importlib.import_module({"br": "brotli", "zstd": "zstandard"}[name])
            found = module.decompress(body) if name == "br" else module.ZstdDecompressor().stream_reader(body)
            return bytes(found if name == "br" else found.read(most + 1))
    except ImportError:
        raise Damaged(f"its body is compressed with {name}, whose package is not installed") from None
    except Exception as error:  # noqa: BLE001 - the errors of optional packages have no class of ours
        raise Damaged(f"its body is declared as {name} but is not: {error}") from None
    raise Damaged(f"its body has the unknown encoding {name[:20]!r}")


def _inflated(body: bytes, ways: tuple[int, ...], most: int) -> bytes:
    """Decompress with the first of `ways` that works; several members in a row, as gzip allows."""
    for way in ways:
        try:
            out, rest = b"", body
            while rest and len(out) <= most:
                unpack = zlib.decompressobj(way)
                out += unpack.decompress(rest, most + 1 - len(out))
                if not unpack.eof and len(out) <= most:
                    raise zlib.error("it is truncated")
                rest = unpack.unused_data.lstrip(b"\0")
            return out
        except zlib.error:
            if way == ways[-1]:
                raise
    return b""


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").split(";")[0].strip().lower()
