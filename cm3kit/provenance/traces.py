"""Trajectory files of a job's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3kit.fill.fillers import Trace
from cm3kit.provenance.trajectories import encode_trajectory, record_of
from cm3kit.targets import check_file
from cm3kit_tokenizers.errors import OutputError

if TYPE_CHECKING:
    from cm3kit.fill.kit import Kit

Told = Sequence[tuple[Trace | None, Mapping[str, Any]]]


def names(path: Path, results: int, boards: int = 1) -> list[Path]:
    """One file per canvas of each result: `path` itself if there is only one, else numbered names."""
    start, dot, suffixes = path.name.partition(".")
    marks = [f"-{index:04d}" if results > 1 else "" for index in range(results)]
    parts = [f"-part{index}" if index else "" for index in range(boards)]
    return [path.with_name(f"{start}{mark}{part}{dot}{suffixes}") for mark in marks for part in parts]


def check_free(path: Path | None, results: int, force: bool) -> None:
    """Check the names before any work is done.

    Raises:
        OutputError: a file exists and `force` is off (`exists`), or a folder is in its place (`cannot_write`).
    """
    for each in names(path, results) if path is not None else []:
        if not each.name.strip("."):
            raise OutputError(f"{each} is a folder; give a file name to --traj.", code="cannot_write")
        check_file(each, force, "--traj")


def files(path: Path | None, written: Told, kit: Kit, prompts: bool) -> list[tuple[Path, bytes]]:
    """The trajectories of all results as files; empty without a path.

    Args:
        written: the traces of each result, and its record.
        prompts: whether the records may be stored in the files.
    """
    if path is None:
        return []
    found = []
    for index, (trace, how) in enumerate(written):
        trajectories = trace.trajectories if trace is not None else ()
        mine = names(path, len(written), len(trajectories))
        mine = mine[index * len(trajectories) :]
        for name, trajectory in zip(mine, trajectories, strict=False):
            found.append((name, encode_trajectory(record_of(trajectory, kit, how if prompts else None))))
    return found
