"""Folders of long work: whose job one is, shares of rows, (i, n) for the rows i, i + n, …, and locks on them."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import gcd
from pathlib import Path
from typing import Any

from cm3kit import publish
from cm3kit.json_lines import dump_json
from cm3kit_tokenizers.errors import ConfigError, DataError, OutputError

_LOCK = re.compile(r"\.lock-(\d+)-of-(\d+)")

Shard = tuple[int, int]


def shard_of(text: str) -> Shard:
    """(i, n) of "i/n"; ConfigError unless 0 <= i < n."""
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise ConfigError(f"--shard {text!r} is not i/n with i from 0 to n - 1.", code="bad_value")


def overlap(first: Shard, second: Shard) -> bool:
    """Whether two shards have a row in common (Chinese remainder theorem)."""
    return (first[0] - second[0]) % gcd(first[1], second[1]) == 0


def held(folder: Path) -> list[Shard]:
    """Shards that are locked by a process."""
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
    """Lock a shard of a folder; the lock ends with the process.

    Raises:
        OutputError: another process has some of its rows (`in_use`).
    """
    with (folder / ".lock").open("ab") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        taken = [each for each in held(folder) if overlap(each, shard)]
        if taken:
            raise OutputError(
                f"{folder}: a process is running shard {taken[0][0]}/{taken[0][1]}, which has rows in common"
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


def make_folder(folder: Path) -> None:
    """Make a folder with those above it; OutputError (`cannot_write`) where that cannot be."""
    try:
        publish.make_folder(folder)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be created: {error.strerror}; change -o.", code="cannot_write"
        ) from None


def read_job(path: Path) -> Mapping[str, Any]:
    """What a folder's job is said to be; DataError (`bad_data`) if that cannot be read."""
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(begun, dict):
            raise ValueError("no object")
        return begun
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}; choose another -o.", code="bad_data") from error


def begin_job(
    path: Path, said: Mapping[str, Any], read: Callable[[Path], Mapping[str, Any]] = read_job
) -> None:
    """Save what a folder's job is, or hold the run to the one that is saved.

    Args:
        path: the job's file, in the folder, which is made.
        read: reads what is saved there.

    Raises:
        ConfigError: the folder belongs to another job (`bad_config`).
        OutputError: it cannot be written. Others as `read`.
    """
    make_folder(path.parent)
    text = dump_json(said, indent=1)
    try:
        # Paths may hold bytes that are no text (PEP 383), which JSON can escape and UTF-8 cannot encode.
        publish.write_atomic(path, f"{text}\n".encode("utf-8", "backslashreplace"))
    except OutputError as error:
        if error.code != "exists":
            raise
    begun, now = read(path), json.loads(text)
    for name in now:
        if begun.get(name) != now[name]:
            what = name.removesuffix("_sha256")
            values = f" ({_short(begun.get(name))}, now {_short(now[name])})" if what == name else ""
            raise ConfigError(
                f"{path.parent} was started with another {what}{values}; choose another -o.",
                code="bad_config",
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
