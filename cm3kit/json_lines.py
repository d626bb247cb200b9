"""JSON as it is written here: UTF-8, paths as strings, and no NaN."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3kit_tokenizers.errors import OutputError

Record = Mapping[str, Any]


def dump_json(record: Record, indent: int | None = None) -> str:
    """JSON in UTF-8, with paths as strings and without NaN."""
    return json.dumps(_finite(record), ensure_ascii=False, indent=indent, default=str, allow_nan=False)


def dump_jsonl(records: Sequence[Record]) -> str:
    """One JSON object a line."""
    return "".join(f"{dump_json(record)}\n" for record in records)


def lines_of(text: str) -> list[str]:
    """The lines of a text.

    `str.splitlines` also breaks at characters that JSON writes as they are, such as U+2028 and U+0085.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


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
