"""WebDataset tars: per key HTML, or caption and picture, or MINT-1T's JSON of texts and images.

Tars are read as a stream and never extracted; members that are not regular files or whose name leaves the folder are
reported.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Self

from cm3kit.web.reasons import Refused
from cm3kit.web.sources import Item, Piece, SourceOptions, about, files, source
from cm3kit.web.sources.rows import CAPTIONS, as_text, finder, html_of, item, listed, pair
from cm3kit_tokenizers.disguise import disguise
from cm3kit_tokenizers.pictures import MAX_BYTES

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "avif", "bmp")
_MOST_BYTES = 512 * 2**20


@source("webdataset")
class WebDataset:
    """A piece is a tar; a page is a sequence of members with the same name up to the first dot."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """One piece per file."""
        return [Piece(name) for name in files(place, (".tar", ".tar.gz", ".tgz"))]

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """Pages in order; a truncated tar gives the pages before the damage and one item that reports it."""
        key, members = "", dict[str, bytes]()
        damage: list[str] = []
        number = [0]
        try:
            with tarfile.open(piece.place, "r|*", tarinfo=_watched(damage), ignore_zeros=True) as tar:
                for member in tar:
                    yield from _damaged(piece, damage, number)
                    wrong = _refused(member)
                    if wrong:
                        if wrong != "folder":
                            yield Item(f"{piece.place}#{member.name}", None, reason="outside", detail=wrong)
                        continue
                    name = member.name.removeprefix("./")
                    base, _, suffix = name.rpartition("/")[2].partition(".")
                    found = f"{name.rpartition('/')[0]}/{base}"
                    if found != key or sum(map(len, members.values())) > _MOST_BYTES:
                        yield from _page(piece, key, members, options)
                        key, members = found, {}
                    opened = tar.extractfile(member)
                    members[suffix.lower()] = opened.read(MAX_BYTES + 1) if opened else b""
            yield from _page(piece, key, members, options)
            yield from _damaged(piece, damage, number)
        except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
            yield from _page(piece, key, members, options)
            with open(piece.place, "rb") as raw:
                what = disguise(raw.read(4096))
            detail = f"the file {what}" if what and not key else str(error)
            yield Item(f"{piece.place}#after {key}", None, reason="unreadable", detail=detail)


def _watched(damage: list[str]) -> type[tarfile.TarInfo]:
    """A TarInfo class that records damaged headers; reading continues at the next intact one."""

    class Watched(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                if buf.strip(b"\0"):
                    damage.append(str(error))
                raise

    return Watched


def _damaged(piece: Piece, damage: list[str], number: list[int]) -> Iterator[Item]:
    """One item for a sequence of blocks that are not headers."""
    if damage:
        number[0] += 1
        detail = f"{len(damage)} blocks are neither a member nor its content: {damage[0]}"
        damage.clear()
        yield Item(f"{piece.place}#damage {number[0]}", None, reason="unreadable", detail=detail)


def _refused(member: tarfile.TarInfo) -> str:
    if member.isdir():
        return "folder"
    if not member.isreg():
        return "a link or device"
    if member.name.startswith("/") or ".." in member.name.split("/") or member.size < 0:
        return "a name outside the folder"
    return ""


def _page(piece: Piece, key: str, members: dict[str, bytes], options: SourceOptions) -> Iterator[Item]:
    if members:
        name = f"{piece.place}#{key.lstrip('/')}"
        try:
            yield _made(name, key, members, options)
        except Refused as refused:
            yield Item(name, None, reason=refused.reason, detail=refused.detail)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            yield Item(name, None, reason="unreadable", detail=str(error))


def _made(name: str, key: str, members: dict[str, bytes], options: SourceOptions) -> Item:
    row: dict[str, Any] = json.loads(members["json"]) if "json" in members else {}
    base = key.rpartition("/")[2]
    known: dict[str, object] = {}
    for suffix, data in members.items():
        if suffix.rpartition(".")[2] in PICTURES:
            known |= {suffix: data, f"{base}.{suffix}": data, f"{key.lstrip('/')}.{suffix}": data}
    told = about("webdataset", row.get("url"), {"key": key.lstrip("/")}, row.get("license"))
    html = members.get("html", members.get("htm"))
    if html is not None:
        return Item(name, html, finder(known, options), told)
    if isinstance(row.get("texts"), list):
        named, _ = listed(row.get("images") or [])
        return Item(name, html_of(row["texts"], named), finder(known, options), told)
    caption = members["txt"] if "txt" in members else row.get("caption")
    picture = next((suffix for suffix in members if suffix in PICTURES), None)
    if caption is not None and picture is not None:
        return Item(name, pair(as_text(caption, "txt"), picture), finder(known, options), told)
    if not row:
        raise Refused(
            "bad_row", f"no page in the members {', '.join(members)}; html, json, or txt and a picture are"
        )
    if picture is not None and not any(each in row for each in CAPTIONS):
        raise Refused(
            "bad_row", f"no text in the members {', '.join(members)}, nor in json: {', '.join(row)}"
        )
    return item(name, row, "webdataset", options)
