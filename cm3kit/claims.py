"""Shares of rows, (i, n) for the rows i, i + n, …, and locks by which no two processes work on the same ones."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import gcd
from pathlib import Path

from cm3kit_tokenizers.errors import OutputError

_LOCK = re.compile(r"\.lock-(\d+)-of-(\d+)")

Shard = tuple[int, int]


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
