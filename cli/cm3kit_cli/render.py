"""Standard output holds the result only; progress and errors go to standard error."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

SCHEMA = "cm3kit/1"
SECONDS_BETWEEN_LINES = 10.0


class Watch(Protocol):
    """Called with how much of a job is done; `note` is shown beside it."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps are over."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The output of a command: `lines` of text, `data` for `--json`, or `content` unchanged.

    `status` is the exit status: 0, 1 where the answer is that something is wrong, or 3 where the same command goes on.
    """

    data: Mapping[str, Any]
    lines: tuple[str, ...] = ()
    content: bytes | None = None
    run_id: str = ""
    warnings: tuple[str, ...] = ()
    status: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a command did not finish."""

    code: str
    message: str
    status: int = 1
    hint: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def version() -> str:
    """The installed version of cm3kit, or of nothing where it runs from a source tree."""
    from importlib import metadata

    try:
        return metadata.version("cm3kit")
    except metadata.PackageNotFoundError:
        return "0+source"


def envelope(command: str, reply: Reply | None, failure: Failure | None = None) -> str:
    """The one JSON object of a run."""
    error = None
    if failure:
        error = {
            "code": failure.code,
            "message": one_line(failure.message),
            "hint": one_line(failure.hint),
            "details": failure.details,
        }
    return json.dumps(
        {
            "schema": SCHEMA,
            "ok": failure is None and (reply is None or reply.status == 0),
            "command": command,
            "version": version(),
            "run_id": reply.run_id if reply else "",
            "data": reply.data if reply else {},
            "warnings": reply.warnings if reply else [],
            "error": error,
        },
        ensure_ascii=False,
        default=str,
    )


def show(reply: Reply, command: str, as_json: bool) -> None:
    """Print an answer on standard output."""
    if as_json:
        print(envelope(command, reply))
    elif reply.content is not None:
        sys.stdout.flush()
        sys.stdout.buffer.write(reply.content)
    else:
        for line in reply.lines:
            print(line)
    sys.stdout.flush()


def show_failure(failure: Failure, command: str, as_json: bool) -> None:
    """Print a failure: one line on standard error, and the envelope where JSON was asked for."""
    if as_json:
        print(envelope(command, None, failure), flush=True)
    name = f"cm3kit {command}".rstrip()
    hint = f" {failure.hint}" if failure.hint else ""
    print(f"{name}: {one_line(failure.message + hint)} [{failure.code}]", file=sys.stderr)


def notes_to(quiet: bool) -> Callable[[str], None]:
    """Prints a line on standard error; nothing where that is to be quiet."""

    def print_line(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    return print_line


def warn_of(lines: Iterable[str], quiet: bool) -> None:
    """Print warnings on standard error, each on one line, unless that is to be quiet."""
    note = notes_to(quiet)
    for line in lines:
        note(f"warning: {one_line(line)}")


def one_line(text: str) -> str:
    """The text on one line, with control characters written out, so that no name can steer a terminal."""
    shown = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in shown)


def without_hashes(told: Mapping[str, Any]) -> dict[str, Any]:
    """The description without the hashes of its files, which --verbose shows."""
    return {key: value for key, value in told.items() if key != "sha256"}


def previews(paths: Sequence[Path]) -> None:
    """Pictures in half blocks on standard error, where both streams are a terminal that shows colours."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") in (None, "dumb")
    pictures = [path for path in paths if path.suffix.lower() == ".png"]
    if plain or not pictures or not (sys.stdout.isatty() and sys.stderr.isatty()):
        return
    from cm3kit.viewing.halfblocks import strip

    print(strip(pictures, shutil.get_terminal_size().columns), file=sys.stderr)


@contextmanager
def progress(label: str, quiet: bool = False) -> Iterator[Watch]:
    """A bar on a terminal, a plain line every ten seconds elsewhere, nothing where `quiet`."""
    if quiet:
        yield lambda done, total, note="": None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(label) as watch:
            yield watch
    else:
        yield _lines(label)


@contextmanager
def _bar(label: str) -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    note_column = TextColumn("{task.fields[note]}")
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note_column)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None, note="")

        def watch(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield watch


def _lines(label: str) -> Watch:
    last = started = time.monotonic()

    def watch(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            line = f"{label} {done}/{total} after {now - started:.0f} s {note}".rstrip()
            print(line, file=sys.stderr, flush=True)

    return watch
