"""The folder of a task's run: what it is for, a line for each row that was judged, and the results.

job.json       model, data and task by their hashes, and settings
rows.jsonl     a line for each row, added when it is judged; of one shard rows-00001-of-00004.jsonl
results.json   figures, once all rows are there
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cm3kit.claims import Shard, begin_job, claim, make_folder, read_job
from cm3kit.evaluation.bootstrap import Ratio
from cm3kit.json_lines import append, dump_json, parse
from cm3kit.publish import write_atomic
from cm3kit_tokenizers.errors import ConfigError, DataError

Figures = Mapping[str, Ratio]
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

    def look(self) -> None:
        """Take up what other shards have added meanwhile."""
        if self.folder is not None:
            self.lines |= _read(self.folder)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the results."""
        if self.folder is not None:
            write_atomic(self.folder / RESULTS, f"{dump_json(results, indent=1)}\n".encode(), force=True)


@contextmanager
def row_store(folder: Path | None, job: Mapping[str, Any], shard: Shard = (0, 1)) -> Iterator[RowStore]:
    """The store of a shard of a job, with the lines that are there already, also those of other shards.

    Raises:
        ConfigError: the folder was begun for another job (`bad_config`).
        OutputError: it cannot be written, or another process works on some of its rows (`in_use`).
        DataError: a line is wrong (`bad_data`).
    """
    if folder is None:
        yield RowStore(None, {}, None)
        return
    make_folder(folder)
    with claim(folder, shard):
        begin_job(folder / JOB, job)
        mine = folder / (ROWS if shard[1] == 1 else f"rows-{shard[0]:05d}-of-{shard[1]:05d}.jsonl")
        _mend(mine)
        lines = _read(folder)
        file = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            yield RowStore(folder, lines, file)
        finally:
            os.close(file)


def figures_of(folder: Path, data_sha256: str, rows: Sequence[int], names: Sequence[str]) -> list[Figures]:
    """Figures of some rows by another run on the same data: of another model, or of the same asked otherwise.

    Raises:
        ConfigError: the run is not there, is of other data or another metric, or lacks rows (`bad_config`).
        DataError: a line is wrong (`bad_data`).
    """

    def wrong(what: str) -> ConfigError:
        return ConfigError(
            f"{folder} {what}; name the folder of a task's whole run, in its -o.", code="bad_config"
        )

    try:
        sha256 = read_job(folder / JOB)["data_sha256"]
    except (DataError, KeyError) as error:
        raise wrong("is no run of a task") from error
    if sha256 != data_sha256:
        raise wrong("is of other data")
    lines = _read(folder)
    if missing := sum(row not in lines for row in rows):
        raise wrong(f"lacks {missing} of the {len(rows)} rows")
    found: list[Figures] = [lines[row]["figures"] for row in rows]
    if any(set(each) != set(names) for each in found):
        raise wrong("was judged by another metric")
    return found


def _mend(path: Path) -> None:
    """Cut a torn last line off."""
    if path.is_file():
        data = path.read_bytes()
        if (end := data.rfind(b"\n") + 1) < len(data):
            os.truncate(path, end)


def _read(folder: Path) -> dict[int, dict[str, Any]]:
    """Lines of all shards by row; one that is being written, or is torn, is left out."""
    return {row: line for path in sorted(folder.glob("rows*.jsonl")) for row, line in _lines(path)}


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    data = path.read_bytes()
    for number, line in parse(data[: data.rfind(b"\n") + 1]):
        try:
            figures = {k: (float(a), float(b)) for k, (a, b) in line["figures"].items()}
            yield int(line["row"]), {**line, "figures": figures}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"line {number} of {path} is wrong; remove it.", code="bad_data") from error
