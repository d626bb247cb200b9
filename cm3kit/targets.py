"""Checks of output paths, made before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

from cm3kit_tokenizers.errors import OutputError


def refuse_existing(path: Path, advice: str = "choose another name or remove it first") -> None:
    """OutputError (`exists`) if there is anything at the path, a broken link too; OSError if that cannot be told."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    raise OutputError(f"{path} exists already; {advice}.", code="exists")


def check_file(path: Path, force: bool, option: str = "-o") -> None:
    """Check that a file can be written at the path that an option names.

    Raises:
        OutputError: a file exists and `force` is off (`exists`), or a folder is in its place (`cannot_write`).
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file name to {option}.", code="cannot_write")
    if not force:
        refuse_existing(path, f"give another {option} or add --force")
