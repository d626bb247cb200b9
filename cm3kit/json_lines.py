"""JSON and JSON lines: written as UTF-8 with paths as strings and without NaN, and read line by line."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from cm3kit_tokenizers.errors import DataError, OutputError

Record = Mapping[str, Any]


class Malformed(Enum):
    """In place of the value of a line that has none."""

    UTF8 = "is not UTF-8"
    JSON = "is not JSON"


def parse(data: bytes | Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and value of each line that is not blank; the value of a malformed line is a `Malformed`.

    Args:
        data: a whole file, or its lines. Only CR and LF end a line, as the other separators of `str.splitlines` may
            stand inside JSON strings.
    """
    lines = data.removeprefix(b"\xef\xbb\xbf").splitlines() if isinstance(data, bytes) else data
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _value(line)


def _value(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Malformed.UTF8
    except (ValueError, RecursionError):
        return Malformed.JSON


def objects(data: bytes | Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The lines that are JSON objects; others, such as one that a crash cut short, are skipped."""
    return (value for _, value in parse(data) if isinstance(value, dict))


def numbered_objects(data: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, from 1, and object of each line that is not blank; DataError (`bad_data`) for any other line."""
    for number, value in parse(data):
        if not isinstance(value, dict):
            raise DataError(f"line {number} of {path} is no JSON object.", code="bad_data")
        yield number, value


def dump_json(record: Record, indent: int | None = None) -> str:
    """JSON in UTF-8, with paths as strings and without NaN."""
    return json.dumps(_finite(record), ensure_ascii=False, indent=indent, default=str, allow_nan=False)


def dump_jsonl(records: Sequence[Record]) -> str:
    """One JSON object a line."""
    return "".join(f"{dump_json(record)}\n" for record in records)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def append(file: int, path: Path, data: bytes) -> None:
    """Append bytes to an open file of lines, on the disk before this returns.

    Args:
        file: descriptor, opened to append. path: what the user is told.

    Raises:
        OutputError: the disk is full (`no_space`), or the file cannot be written (`cannot_write`).
    """
    try:
        while data:
            data = data[os.write(file, data) :]
        os.fsync(file)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; free some space, and repeat the command.",
            code="no_space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot_write",
        ) from error
