"""File names of a run's outputs, and the AI mark of pages."""

from __future__ import annotations

import html
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cm3kit.images import SOURCE_TYPE
from cm3kit.json_lines import Record, dump_json
from cm3kit.targets import check_file
from cm3kit_tokenizers.errors import ConfigError, OutputError

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Plan:
    """Output paths of a run.

    `paths` has one entry per result and is empty for standard output. `folder` is None for single files;
    records are written into a folder only. `bare` results get no recipe file.
    """

    run_id: str
    paths: tuple[Path, ...] = ()
    sheet: Path | None = None
    report: Path | None = None
    folder: Path | None = None
    bare: bool = False
    overview: Path | None = None

    @property
    def to_stdout(self) -> bool:
        """Whether the results go to standard output."""
        return not self.paths

    @property
    def all_paths(self) -> tuple[Path, ...]:
        """Every file that the run will write."""
        records = (self.folder / "run.json", self.folder / "manifest.jsonl") if self.folder else ()
        return (*self.paths, *(path for path in (self.sheet, self.report, self.overview) if path), *records)


def run_id(command: str, now: datetime | None = None) -> str:
    """`<command>-<YYYYMMDDTHHMMSS>-<6 hex digits>`, in local time."""
    return f"{command.replace(' ', '-')}-{now or datetime.now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def plan(
    name: str,
    output: str | None,
    suffix: str,
    seeds: Sequence[int],
    *,
    sheet: bool = False,
    report: bool = False,
) -> Plan:
    """Name the files of a run with one result for each of `seeds`.

    `output` is None (a new folder under `outputs/`), `-` (standard output), a folder (ends with `/`,
    exists as one, or has no suffix) or a file name, numbered where there are several results.

    Raises:
        ConfigError: several pictures or pages for standard output, or a picture's name does
            not end in `.png` (`bad_value`).
        OutputError: a path is malformed (`cannot_write`).
    """
    if output == STDOUT:
        if suffix != ".txt" and len(seeds) > 1:
            raise ConfigError(
                f"-o - writes one result, but {len(seeds)} were requested; request one, or give a folder",
                code="bad_value",
            )
        return Plan(name)
    if output is not None and (not output.strip() or "\0" in output):
        raise OutputError(f"-o {output!r} is not a path; give a file, a folder or -", code="cannot_write")
    target = Path("outputs", name) if output is None else Path(output)
    # os.path returns False where pathlib raises: names that are too long, folders without permission.
    bare = target.suffix == "" and not os.path.isfile(target)
    if output is None or output.endswith("/") or bare or os.path.isdir(target):
        return _folder_plan(name, target, suffix, seeds, sheet, report)
    if suffix == ".png" and target.suffix.lower() != suffix:
        raise ConfigError(
            f"-o {output}: pictures are PNG files; end the name in .png, or a folder's in /", code="bad_value"
        )
    if len(seeds) == 1:
        paths: tuple[Path, ...] = (target,)
    else:
        paths = tuple(target.with_stem(f"{target.stem}-{index:04d}") for index in range(len(seeds)))
    return Plan(
        name,
        paths,
        target.with_name(f"{target.stem}-grid.png") if sheet else None,
        target.with_name(f"{target.stem}-diff.html") if report else None,
    )


def _folder_plan(
    name: str, folder: Path, suffix: str, seeds: Sequence[int], sheet: bool, report: bool
) -> Plan:
    marks = [f"-s{seed}" if suffix == ".png" else "" for seed in seeds]
    return Plan(
        name,
        tuple(folder / f"{index:06d}{mark}{suffix}" for index, mark in enumerate(marks)),
        folder / "grid.png" if sheet else None,
        folder / "diff.html" if report else None,
        folder,
    )


def check_free(planned: Plan, force: bool) -> None:
    """Check a plan before any work is done.

    Raises:
        OutputError: a file exists and `force` is off (`exists`), or a folder is in place of a
            file or vice versa (`cannot_write`).
    """
    for path in planned.all_paths:
        try:
            parent = next(p for p in path.parents if p.exists())
            if not parent.is_dir():
                raise OutputError(
                    f"{parent} is a file, so {path} cannot be written; change -o", code="cannot_write"
                )
            check_file(path, force)
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} cannot be written: {error}; change -o", code="cannot_write") from None


def mark_html(page: str, metadata: Record | None = None) -> str:
    """A generated page with the AI mark and, unless `metadata` is None, its recipe.

    Both are inserted after `<head>`, else after `<html>` or the doctype, else at the start.
    """
    mark = f'<meta name="generator" content="cm3kit {html.escape(str((metadata or {}).get("version", "")))}">'
    mark += f'<meta name="Iptc4xmpExt:DigitalSourceType" content="{SOURCE_TYPE}">'
    if metadata is not None:
        data = dump_json(metadata).replace("<", "\\u003c")
        mark += f'<script type="application/json" id="cm3kit">{data}</script>'
    for tag in ("head", "html", "!doctype"):
        if found := re.search(rf"<{tag}(\s[^>]*)?>", page[:2000], re.IGNORECASE):
            return page[: found.end()] + mark + page[found.end() :]
    return mark + page
