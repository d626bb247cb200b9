"""The folder of a task's run: what it is for, a line for each row that was judged, and the results.

job.json       model, data and task by their hashes, and settings
rows.jsonl     a line for each row, added when it is judged
results.json   figures, once all rows are there
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cm3kit.json_lines import append, dump_json, parse
from cm3kit.publish import write_atomic
from cm3kit_tokenizers.errors import ConfigError, DataError, OutputError

JOB, ROWS, RESULTS = "job.json", "rows.jsonl", "results.json"


class RowStore:
    """Takes lines of rows down, in a folder or, without one, in memory alone."""

    def __init__(self, folder: Path | None, lines: dict[int, dict[str, Any]], file: int | None) -> None:
        self.folder, self.lines, self._file = folder, lines, file

    def add(self, row: int, line: Mapping[str, Any]) -> None:
        """Keep the line of a row, on the disk before this returns."""
        self.lines[row] = dict(line)
        if self._file is not None:
            data = f"{dump_json({'row': row, **line})}\n".encode("utf-8", "backslashreplace")
            append(self._file, self.folder or Path(), data)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the results."""
        if self.folder is not None:
            write_atomic(self.folder / RESULTS, f"{dump_json(results, indent=1)}\n".encode(), force=True)


@contextmanager
def row_store(folder: Path | None, job: Mapping[str, Any]) -> Iterator[RowStore]:
    """The store of a job, with the lines that are there already.

    Raises:
        ConfigError: the folder was begun for another job (`bad_config`).
        OutputError: it cannot be written, or another process works on it (`in_use`).
        DataError: a line is wrong (`bad_data`).
    """
    if folder is None:
        yield RowStore(None, {}, None)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror}; change -o.", code="cannot_write"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OutputError(f"{folder}: another process works on it; wait for it.", code="in_use") from None
    try:
        _begin(folder, job)
        lines = _read(folder / ROWS)
        file = os.open(folder / ROWS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            yield RowStore(folder, lines, file)
        finally:
            os.close(file)
    finally:
        os.close(lock)


def _begin(folder: Path, job: Mapping[str, Any]) -> None:
    now = json.loads(dump_json(job))
    path = folder / JOB
    if not path.is_file():
        write_atomic(path, f"{dump_json(job, indent=1)}\n".encode(), force=True)
        return
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(begun, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; choose another -o.", code="bad_data") from error
    for name in now:
        if begun.get(name) != now[name]:
            raise ConfigError(
                f"{folder} was begun with another {name}; choose another -o.", code="bad_config"
            )


def _read(path: Path) -> dict[int, dict[str, Any]]:
    """Lines by row; a torn last line is cut off."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    found: dict[int, dict[str, Any]] = {}
    for number, line in parse(data[:end]):
        try:
            found[int(line["row"])] = {
                **line,
                "figures": {k: (float(a), float(b)) for k, (a, b) in line["figures"].items()},
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"line {number} of {path} is wrong; remove it.", code="bad_data") from error
    return found
