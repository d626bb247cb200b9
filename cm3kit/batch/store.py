"""The folder of a sampling run: files that appear whole, and a manifest to which a line is added when they are there.

    job.json                        what the folder is for
    files/000/000042-0.png          output 0 of row 42
    manifest.jsonl                  a line an output; an output is done when its line is there
    manifest-00001-of-00004.jsonl   the same of a shard, until `merge`
    runs/<run id>.json              one a process: versions, device, when

Lines say nothing of time and process, so that a run that was killed ends with the lines of one that was not.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

from cm3kit.decode_options import under_new_names
from cm3kit.json_lines import dump_json
from cm3kit.publish import sweep, write_atomic, write_group
from cm3kit_tokenizers.errors import ConfigError, DataError, OutputError

MANIFEST = "manifest.jsonl"
JOB = "job.json"
FILES = "files"
SUFFIXES = (".png", ".txt", ".html")
_LOCK = re.compile(r"\.lock-(\d+)-of-(\d+)")

Shard = tuple[int, int]
Key = tuple[int, int]
"""Number of a row, and which of its outputs."""
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Made:
    """An output: the line of the manifest without what depends on the file, and the file; None for an error."""

    line: Line
    suffix: str = ""
    content: bytes | None = None


def manifest_name(shard: Shard) -> str:
    """The manifest of a shard; the only one is called `manifest.jsonl`."""
    return MANIFEST if shard[1] == 1 else f"manifest-{shard[0]:05d}-of-{shard[1]:05d}.jsonl"


def manifests(folder: Path) -> list[Path]:
    """All manifests of a folder."""
    return sorted(folder.glob("manifest*.jsonl"))


def file_name(key: Key, suffix: str) -> str:
    """Where an output goes, from the folder."""
    return f"{FILES}/{key[0] // 1000:03d}/{key[0]:06d}-{key[1]}{suffix}"


def read_lines(folder: Path) -> dict[Key, Line]:
    """What is done, by row and output; a torn line is none, and of two that say the same the later one counts.

    Raises:
        DataError: a line names another file than its output's own (`bad_data`).
    """
    found: dict[Key, Line] = {}
    for path in manifests(folder):
        with path.open("rb") as file:
            for raw in file:
                with suppress(ValueError, KeyError, TypeError):
                    line = json.loads(raw) if raw.endswith(b"\n") else {}
                    key = (int(line["row"]), int(line["index"]))
                    _check(line, key, path)
                    # A failure that another shard has mended since is none.
                    if line["status"] == "ok" or found.get(key, line)["status"] != "ok":
                        found[key] = line
    return found


def _check(line: Line, key: Key, manifest: Path) -> None:
    """Hold a line to what `Store.commit` writes: a manifest is a file that anyone may have written.

    Raises:
        DataError: it names another file than its own. KeyError, TypeError: it says too little.
    """
    if min(key) < 0 or line["status"] not in ("ok", "error"):
        raise KeyError("status")
    if line["status"] == "error":
        line["code"], line["error"]
        return
    if not isinstance(line["path"], str) or not isinstance(line["sha256"], str):
        raise TypeError("path")
    suffix = Path(line["path"]).suffix
    if suffix not in SUFFIXES or line["path"] != file_name(key, suffix):
        raise DataError(
            f"{manifest}: row {key[0]} names {line['path'][:80]!r} as its file, which is not its own; remove the line.",
            code="bad_data",
        )


def read_job(folder: Path) -> dict[str, Any]:
    """What a folder is for; DataError if it is no folder of a sampling run."""
    try:
        found: dict[str, Any] = json.loads((folder / JOB).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(
            isinstance(found.get(name), int) for name in ("seed", "outputs")
        ):
            raise ValueError("it does not name seed and outputs")
        if isinstance(found.get("options"), dict):
            found["options"] = under_new_names(found["options"])
        return found
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no {JOB}; it is not a folder of sample run.", code="no_file"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / JOB} cannot be read: {error}.", code="bad_data") from None


def begin(folder: Path, said: Mapping[str, Any]) -> None:
    """Write down what the folder is for, or hold the run to what is.

    Raises:
        ConfigError: it was begun for something else (`bad_config`).
        OutputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made: {error.strerror}; change -o.", code="cannot_write"
        ) from None
    text = dump_json(said, indent=1)
    try:
        write_atomic(folder / JOB, f"{text}\n".encode())
    except OutputError as error:
        if error.code != "exists":
            raise
    begun, now = read_job(folder), json.loads(text)
    for name in now:
        if begun.get(name) != now[name]:
            raise ConfigError(
                f"{folder} was begun with another {name} ({_short(begun.get(name))}, and now {_short(now[name])});"
                " choose another -o.",
                code="bad_config",
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def overlap(first: Shard, second: Shard) -> bool:
    """Whether two shards have a row in common (Chinese remainder theorem)."""
    return (first[0] - second[0]) % gcd(first[1], second[1]) == 0


def held(folder: Path) -> list[Shard]:
    """Shards that processes are working on."""
    found = []
    for path in sorted(folder.glob(".lock-*-of-*")):
        if (match := _LOCK.fullmatch(path.name)) and not _free(path):
            found.append((int(match[1]), int(match[2])))
    return found


def _free(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:
        return True


@contextmanager
def claim(folder: Path, shard: Shard) -> Iterator[None]:
    """Hold a shard of a folder; whoever dies lets go of it.

    Raises:
        OutputError: another process works on some of its rows (`in_use`).
    """
    with (folder / ".lock").open("ab") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        taken = [each for each in held(folder) if overlap(each, shard)]
        if taken:
            raise OutputError(
                f"{folder}: a process is at work on shard {taken[0][0]}/{taken[0][1]}, which has rows in common"
                f" with {shard[0]}/{shard[1]}; wait for it, or join as another shard of {taken[0][1]}.",
                code="in_use",
            )
        mine = (folder / f".lock-{shard[0]}-of-{shard[1]}").open("ab")
        fcntl.flock(mine, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            Path(mine.name).unlink()
        mine.close()


class Store:
    """Takes outputs of one shard down. Use it while the shard is claimed."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.folder, self._path = folder, folder / manifest_name(shard)
        for each in sorted((folder / FILES).glob("*")):
            sweep(each)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._mend()

    def _mend(self) -> None:
        """Cut off a line that was being written when the process died."""
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
        """Put files on the disk, and then their lines."""
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
        self._append("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))

    def _append(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            raise OutputError(
                f"{self._path} cannot be written: {error.strerror}; free some space, and run the same command.",
                code="no_space" if error.errno in (28, 122) else "cannot_write",
            ) from error

    def close(self) -> None:
        """Let go of the manifest."""
        os.close(self._file)
