"""Split WARC files into records that are read separately: a damaged record does not affect the next."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import IO

from cm3kit_tokenizers.disguise import disguise
from cm3kit_tokenizers.html.spans import MAX_BYTES

MOST_BYTES = MAX_BYTES + (8 << 20)
"""Longer records are truncated to this; it is above every limit."""
BROKEN = (OSError, EOFError, ValueError, zlib.error, RuntimeError)
_LINE, _HEAD, _STEP = 1 << 16, 1 << 20, 1 << 20
_PACKED = b"\x1f\x8b\x08"
_START = re.compile(rb"WARC/[0-9]\.[0-9]+[ \t]*\r?\n(?=[Ww][Aa][Rr][Cc]-|[Cc][Oo][Nn][Tt][Ee][Nn][Tt]-)")


@dataclass(frozen=True, slots=True)
class Raw:
    """A record: offset of it or of its gzip member, its number in the member, and its bytes.

    If there are no bytes, `error` is the reason.
    """

    offset: int
    number: int
    data: bytes
    error: str = ""

    @property
    def name(self) -> str:
        """A name that is unique in its file."""
        return f"{self.offset}.{self.number}" if self.number else str(self.offset)


class Damaged(Exception):
    """A record cannot be read, with the reason."""


class _Member(io.RawIOBase):
    """The content of one gzip member; `consumed` is its size in the file once it has ended."""

    def __init__(self, file: IO[bytes], offset: int) -> None:
        file.seek(offset)
        self._file, self._unpack, self.consumed = file, zlib.decompressobj(31), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._unpack.eof:
            packed = self._unpack.unconsumed_tail or self._file.read(_LINE)
            if not packed:
                raise Damaged("a record is truncated")
            out = self._unpack.decompress(packed, len(buffer))
            self.consumed += len(packed) - len(self._unpack.unconsumed_tail) - len(self._unpack.unused_data)
            if out:
                buffer[: len(out)] = out
                return len(out)
        return 0


def records(place: str, offset: int = 0) -> Iterator[Raw]:
    """The records of a file from an offset, in order; after a damaged one from the next that is found."""
    with open(place, "rb") as file:
        packed = file.read(3) == _PACKED
        size = file.seek(0, io.SEEK_END)
        while offset < size:
            try:
                offset = yield from (_member(file, offset) if packed else _plain(file, offset))
            except (Damaged, *BROKEN) as error:
                yield Raw(offset, 0, b"", _real(file, offset) or str(error) or type(error).__name__)
                offset = _next(file, offset + 1, size, packed)


def _real(file: IO[bytes], offset: int) -> str:
    """The real type of a file that does not start with a record."""
    file.seek(0)
    head = b"" if offset else file.read(4096)
    what = "" if head.startswith(_PACKED) else disguise(head)
    return f"the file {what}" if what else ""


def record(place: str, offset: int, number: int) -> bytes:
    """The bytes of one record by its offset and number from `records`."""
    for each in records(place, offset):
        if each.offset == offset and each.number == number and not each.error:
            return each.data
        if each.offset != offset:
            break
    raise Damaged("the record is missing")


def _plain(file: IO[bytes], offset: int) -> Generator[Raw, None, int]:
    file.seek(offset)
    data = _read(file)
    if data:
        yield Raw(offset, 0, data)
    return file.tell()


def _member(file: IO[bytes], offset: int) -> Generator[Raw, None, int]:
    member = _Member(file, offset)
    stream, number = io.BufferedReader(member, _LINE), 0
    try:
        while data := _read(stream):
            yield Raw(offset, number, data)
            number += 1
    except (Damaged, *BROKEN) as error:
        if not number:
            raise
        yield Raw(offset, number, b"", str(error) or type(error).__name__)
        return _next(file, offset + 1, file.seek(0, io.SEEK_END), True)
    return offset + member.consumed


def _read(stream: IO[bytes] | io.BufferedReader) -> bytes:
    """The next record of a stream, without trailing empty lines; empty at the end."""
    while (line := stream.readline(_LINE)) in (b"\r\n", b"\n"):
        pass
    if not line:
        return b""
    if not line.startswith(b"WARC/"):
        raise Damaged("no record starts where one should")
    head, length = [line], -1
    while (line := stream.readline(_LINE)).strip():
        if not line.endswith(b"\n") or sum(map(len, head)) > _HEAD:
            raise Damaged("a record's header is truncated")
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            if not value.strip().isdigit():
                raise Damaged("a record's length is not a number")
            length = int(value)
        head.append(line)
    if not line or length < 0:
        raise Damaged(
            "a record's header is truncated" if not line else "a record does not declare its length"
        )
    body = stream.read(min(length, MOST_BYTES))
    left = length - len(body)
    while left and body and (skipped := len(stream.read(min(left, _STEP)))):
        left -= skipped
    if left:
        raise Damaged("a record is truncated")
    for _ in range(2):
        if stream.readline(_LINE).strip():
            raise Damaged("a record's length is wrong")
    return b"".join([*head, b"\r\n", body])


def _next(file: IO[bytes], offset: int, size: int, packed: bool) -> int:
    """Where the next record starts, or the end of the file."""
    mark = _PACKED if packed else b"WARC/"
    while offset < size:
        file.seek(offset)
        block = file.read(_STEP + 256)
        at = -1
        while (at := block.find(mark, at + 1)) >= 0 and at < _STEP:
            if packed:
                file.seek(offset + at)
                found = _opens(file.read(4096))
            else:
                found = _START.match(block, at) is not None
            if found:
                return offset + at
        offset += _STEP
    return size


def _opens(head: bytes) -> bool:
    try:
        return zlib.decompressobj(31).decompress(head, 5) == b"WARC/"
    except zlib.error:
        return False
