"""Count, check and merge the folder of a sampling run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cm3kit.batch.store import (
    MANIFEST,
    Key,
    Line,
    begin,
    counts,
    fuller,
    manifests,
    read_job,
    read_lines,
)
from cm3kit.claims import claim, held
from cm3kit.json_lines import dump_json
from cm3kit.publish import write_atomic, write_group
from cm3kit_tokenizers.errors import DataError

Warn = Callable[[str], None]
GROUP = 64


def summary(folder: Path) -> dict[str, Any]:
    """Counts of a folder: all `outputs` of the job, and how many are `done`, `failed`, `missing` and `warned`."""
    job, lines = read_job(folder), read_lines(folder)
    return {
        "folder": folder, "seed": job["seed"], "outputs": job["outputs"],
        **counts([lines[key] for key in sorted(lines)], job["outputs"]),
    }  # fmt: skip


def status(folder: Path, verify: bool = False) -> dict[str, Any]:
    """`summary`, the failures by code, the running shards, and with `verify` the files that have changed.

    Raises:
        DataError: the folder is not that of a sampling run.
    """
    found = summary(folder)
    codes: dict[str, int] = {}
    for line in read_lines(folder).values():
        if line["status"] != "ok":
            codes[line["code"]] = codes.get(line["code"], 0) + 1
    found |= {"failures": codes, "at_work": [f"{index}/{count}" for index, count in held(folder)]}
    if verify:
        found["damaged"] = [line["path"] for _, line, content in contents(folder) if content is None]
    return found


def contents(folder: Path) -> Iterator[tuple[Key, Line, bytes | None]]:
    """Every finished output in order, with its file; None if that is missing or has changed."""
    for key, line in sorted(read_lines(folder).items()):
        if line["status"] == "ok":
            yield key, line, _content(folder, line)


def _content(folder: Path, line: Mapping[str, Any]) -> bytes | None:
    path = folder / str(line["path"])
    # A manifest is untrusted: its paths must not leave its folder.
    if not path.resolve().is_relative_to(folder.resolve()):
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == line["sha256"] else None


def merge(folder: Path, others: tuple[Path, ...] = (), warn: Warn = lambda line: None) -> dict[str, Any]:
    """Merge the manifests of all shards into one, sorted, together with the outputs of other folders of the same job.

    Raises:
        OutputError: a process is using one of the folders (`in_use`).
        ConfigError: one of `others` belongs to another job. DataError: a file of `others` is damaged.
    """
    for other in others:
        begin(folder, read_job(other))
    read_job(folder)
    with ExitStack() as stack:
        for each in (folder, *others):
            stack.enter_context(claim(each, (0, 1)))
        for other in others:
            _fetch(other, folder)
        lines = read_lines(folder)
        for other in others:
            for key, line in read_lines(other).items():
                known = lines.get(key)
                if known is None or known["status"] != "ok":
                    lines[key] = line
                elif line["status"] == "ok" and line["sha256"] == known["sha256"]:
                    lines[key] = fuller(known, line)
                elif line["status"] == "ok":
                    warn(
                        f"output {key[1]} of row {key[0]} differs between {folder} and {other}; the first is kept"
                    )
        text = "".join(f"{dump_json(line)}\n" for _, line in sorted(lines.items()))
        write_atomic(folder / MANIFEST, text.encode(), force=True)
        for path in manifests(folder):
            if path.name != MANIFEST:
                path.unlink()
    return summary(folder)


def _fetch(other: Path, folder: Path) -> None:
    """Copy missing files."""
    group: list[tuple[Path, bytes]] = []
    known = read_lines(folder)
    for key, line, content in contents(other):
        if known.get(key, {"status": ""})["status"] == "ok":
            continue
        if content is None:
            raise DataError(
                f"{other / line['path']} is missing or damaged; run the job there again.", code="bad_data"
            )
        target = folder / line["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        group.append((target, content))
        if len(group) == GROUP:
            write_group(group)
            group = []
    write_group(group)
