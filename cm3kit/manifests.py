"""What a manifest has to name: every file of its folder that holds data."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

DATA = frozenset({".safetensors", ".json", ".jsonl", ".parquet", ".bin", ".npz"})
"""Suffixes of files that hold data; a README may come later."""


def unnamed(folder: Path, named: Collection[str]) -> str | None:
    """A line on a file that holds data and is not named, or on a manifest that names nothing but itself; else None."""
    if len(named) < 2:
        return f"{folder}: the manifest names no file"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith("."):
            continue  # the runs that made a model: nobody reads them as a part of it
        if path.suffix in DATA and name not in named:
            return f"{folder}: the manifest does not name {name}"
    return None
