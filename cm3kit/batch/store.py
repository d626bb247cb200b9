"""The folder of a sampling run: atomically written files, and a manifest with one line per finished output.

    job.json                        the job of the folder
    files/000/000042-0.png          output 0 of row 42
    manifest.jsonl                  one line per output; an output is done when its line is there
    manifest-00001-of-00004.jsonl   the lines of one shard, until `merge`
    runs/<run id>.json              one per process: versions, device, times

Lines hold no time and process id, so that an interrupted run ends with the same lines as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3kit.claims import Shard, begin_job
from cm3kit.decode_options import under_new_names
from cm3kit.json_lines import append, dump_json, objects
from cm3kit.publish import write_group
from cm3kit.temporaries import sweep
from cm3kit_tokenizers.errors import DataError

MANIFEST = "manifest.jsonl"
JOB = "job.json"
FILES = "files"
MOST_WARNINGS = 5
SUFFIXES = (".png", ".txt", ".html")
Key = tuple[int, int]
"""Number of a row, and index of its output."""
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Made:
    """An output: its manifest line without the fields of the file, and the file; None for an error."""

    line: Line
    suffix: str = ""
    content: bytes | None = None


def manifest_name(shard: Shard) -> str:
    """File name of the manifest of a shard; `manifest.jsonl` if there is only one."""
    return MANIFEST if shard[1] == 1 else f"manifest-{shard[0]:05d}-of-{shard[1]:05d}.jsonl"


def manifests(folder: Path) -> list[Path]:
    """All manifests of a folder."""
    return sorted(folder.glob("manifest*.jsonl"))


def file_name(key: Key, suffix: str) -> str:
    """Path of an output relative to the folder."""
    return f"{FILES}/{key[0] // 1000:03d}/{key[0]:06d}-{key[1]}{suffix}"


def counts(lines: Sequence[Line], wanted: int) -> dict[str, Any]:
    """How many outputs are done, failed, missing and done with warnings, and the first of these."""
    done = sum(line["status"] == "ok" for line in lines)
    told = [line["warnings"] for line in lines if line["status"] == "ok" and line.get("warnings")]
    first = dict.fromkeys(str(each) for some in told for each in some)
    return {
        "done": done, "failed": len(lines) - done, "missing": wanted - len(lines), "warned": len(told),
        "warnings": list(first)[:MOST_WARNINGS],
    }  # fmt: skip


def read_lines(folder: Path) -> dict[Key, Line]:
    """Finished outputs by row and output; torn lines are ignored, and of two lines for one output the later counts.

    Raises:
        DataError: a line names a file other than its own (`bad_data`).
    """
    found: dict[Key, Line] = {}
    for path in manifests(folder):
        with path.open("rb") as file:
            for line in objects(raw for raw in file if raw.endswith(b"\n")):
                with suppress(ValueError, KeyError, TypeError):
                    key = (int(line["row"]), int(line["index"]))
                    _check(line, key, path)
                    # A failure that another shard has retried successfully is ignored.
                    if line["status"] == "ok" or found.get(key, line)["status"] != "ok":
                        found[key] = fuller(found.get(key), line)
    return found


def fuller(known: Line | None, line: Line) -> Line:
    """Of two lines for one output the later one, or of two for the same file that with more warnings."""
    if known is not None and known.get("sha256") == line.get("sha256"):
        return max(line, known, key=lambda each: len(each.get("warnings", ())))
    return line


def _check(line: Line, key: Key, manifest: Path) -> None:
    """Check that a line could be from `Store.commit`, as manifests are untrusted.

    Raises:
        DataError: it names a file other than its own. KeyError, TypeError: fields are missing or of a wrong type.
    """
    if min(key) < 0 or line["status"] not in ("ok", "error"):
        raise KeyError("status")
    if not isinstance(line.get("warnings", []), list):
        raise TypeError("warnings")
    if line["status"] == "error":
        line["code"], line["error"]
        return
    if not isinstance(line["path"], str) or not isinstance(line["sha256"], str):
        raise TypeError("path")
    suffix = Path(line["path"]).suffix
    if suffix not in SUFFIXES or line["path"] != file_name(key, suffix):
        raise DataError(
            f"{manifest}: row {key[0]} names the file {line['path'][:80]!r}, which is not its own; remove the line.",
            code="bad_data",
        )


def read_job(folder: Path) -> dict[str, Any]:
    """The job of a folder; DataError if it is not the folder of a sampling run."""
    try:
        found: dict[str, Any] = json.loads((folder / JOB).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(
            isinstance(found.get(name), int) for name in ("seed", "outputs")
        ):
            raise ValueError("seed and outputs are missing")
        if isinstance(found.get("options"), dict):
            found["options"] = under_new_names(found["options"])
        return found
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no {JOB}; it is not the folder of a sampling run.", code="no_file"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / JOB} cannot be read: {error}.", code="bad_data") from None


def begin(folder: Path, said: Mapping[str, Any]) -> None:
    """Save the job of a folder, or compare the run with the saved job.

    Raises:
        ConfigError: the folder belongs to another job (`bad_config`).
        OutputError: it cannot be written.
    """
    begin_job(folder / JOB, said, lambda path: read_job(path.parent))


class Store:
    """Saves outputs of one shard. Use it only while the shard is locked."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.folder, self._path = folder, folder / manifest_name(shard)
        for each in sorted((folder / FILES).glob("*")):
            sweep(each)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._mend()

    def _mend(self) -> None:
        """Truncate a line that was left incomplete by a crash."""
        size = os.fstat(self._file).st_size
        end, block = size, 1 << 16
        while end > 0:
            start = max(0, end - block)
            place = os.pread(self._file, end - start, start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
        if end != size:
            os.ftruncate(self._file, end)
            os.fsync(self._file)

    def commit(self, made: Sequence[Made]) -> None:
        """Flush files to disk, then their lines."""
        files, lines = [], []
        for each in made:
            line = dict(each.line)
            if each.content is not None:
                name = file_name((line["row"], line["index"]), each.suffix)
                line |= {"path": name, "sha256": hashlib.sha256(each.content).hexdigest()}
                line["size"] = len(each.content)
                files.append((self.folder / name, each.content))
            lines.append(dump_json(line))
        for folder in {path.parent for path, _ in files}:
            folder.mkdir(parents=True, exist_ok=True)
        write_group(files)
        append(
            self._file, self._path, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        )

    def close(self) -> None:
        """Close the manifest."""
        os.close(self._file)
