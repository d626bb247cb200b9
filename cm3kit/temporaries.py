"""Files and folders under temporary names, locked while their writer lives: what nobody holds was left behind."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PREFIX = ".tmp-"


def temporary_folder(parent: Path) -> tuple[Path, int]:
    """A new folder, and a descriptor whose lock lasts until it is closed or the process dies."""
    return _locked(parent, _new_folder)


def temporary_file(parent: Path) -> tuple[Path, int]:
    """A new file, and a descriptor to write to, as of `temporary_folder`."""
    return _locked(parent, _new_file)


def sweep(run: Path) -> None:
    """Remove temporary files and folders that no process is writing any more."""
    for path in run.glob(f"{PREFIX}*"):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(path)
            finally:
                os.close(handle)


def _locked(parent: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    # Between the two steps another process may take it for one left behind (`sweep`); then a new one is made.
    while True:
        temporary = parent / f"{PREFIX}{secrets.token_hex(8)}"
        handle = make(temporary)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.lexists(temporary):
                return temporary, handle
        except BaseException:
            remove(temporary)
            os.close(handle)
            raise
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, as far as can be."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _new_folder(path: Path) -> int:
    while True:
        path.mkdir()
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # swept already
            continue


def _new_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
