"""From a source to prepared parts: in one or several processes, sharded, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cm3kit.claims import begin_job, make_folder
from cm3kit.config import read_yaml, resolve
from cm3kit.extras import need
from cm3kit.publish import publishing, write_atomic
from cm3kit.temporaries import sweep
from cm3kit.web.job import Job
from cm3kit.web.parts import PartWriter, audit_of
from cm3kit.web.record import Dropped, Record, html_to_record
from cm3kit.web.settings import PRESETS, WebSettings
from cm3kit.web.sources import Item, Piece, Source, SourceOptions, detect, load_sources
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, OutputError, stops

Watch = Callable[[int, int, str], None]
Warn = Callable[[str], None]
JOB = "job.json"
COLUMNS = ("caption", "url", "image", "text", "html", "texts", "images", "text_list", "image_info", "license")


def prepare(
    place: str, output: Path, *, kind: str = "auto", settings: WebSettings | None = None,
    options: SourceOptions | None = None, shard: tuple[int, int] = (0, 1), workers: int = 0,
    watch: Watch = lambda done, total, note: None, warn: Warn = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Prepare a source, or resume it: finished parts are kept.

    Args:
        place: a file, folder or name; see `sources`.
        kind: of source; `auto` detects it by file names.
        shard: (i, n): only the pieces i, i + n, i + 2n, …
        workers: processes; with 0 the pages are read in this process, and a page that hangs or crashes the parser
            ends the run.

    Returns:
        Counts of all finished parts, and how many are `missing`. With none missing, `audit.json` and `report.md`
        are written.

    Raises:
        ConfigError: the folder belongs to another source or other settings.
        DataError: the source or a required extra is missing.
    """
    job, pieces = begin(place, output, kind, settings, options)
    index, count = shard
    mine = [(number, piece) for number, piece in enumerate(pieces) if number % count == index]
    todo = [(number, piece) for number, piece in mine if not job.part(number).is_dir()]
    done, kept = len(mine) - len(todo), 0
    if done:
        warn(f"{done} of {len(mine)} parts are done already")
    for counts in _run(job, todo, workers, warn):
        done, kept = done + 1, kept + counts["pages"].get("kept", 0)
        watch(done, len(mine), f"{kept} pages kept")
    return finish(job, len(pieces))


def begin(
    place: str, output: Path, kind: str = "auto", settings: WebSettings | None = None,
    options: SourceOptions | None = None,
) -> tuple[Job, list[Piece]]:  # fmt: skip
    """The job of a folder and its pieces; saved, or compared with the saved one. See `prepare`."""
    need("pyarrow", "web", "Writing records")
    sources = load_sources()
    kind = detect(place) if kind == "auto" else kind
    options = options or SourceOptions()
    pieces = sources[kind]().pieces(place, options)
    job = Job(kind, output, settings or WebSettings(), options)
    _write_down(job, place, pieces)
    return job, pieces


def finish(job: Job, pieces: int) -> dict[str, Any]:
    """Counts of the finished parts; once all are finished, write `audit.json` and `report.md`."""
    from cm3kit.web.report import report

    missing = sum(not job.part(number).is_dir() for number in range(pieces))
    found: dict[str, Any] = {"missing": missing, **(audit_of(job.output) if missing < pieces else {})}
    if not missing:
        write_atomic(job.output / "audit.json", json.dumps(found, indent=1).encode(), force=True)
        write_atomic(job.output / "report.md", report(job.output, found).encode(), force=True)
    return found


def settings_of(preset: str, config: Sequence[Path], overrides: Sequence[str]) -> WebSettings:
    """Rules from a preset, then YAML files, then `a.b=c`; ConfigError for unknown names."""
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}.", code="unknown_name")
    return resolve(WebSettings, [PRESETS[preset], *map(read_yaml, config)], overrides)


def columns_of(given: Sequence[str]) -> dict[str, str]:
    """Map of column names from `NAME=THEIRS`; ConfigError (bad_value) for malformed or unknown ones."""
    found = {}
    for each in given:
        name, sign, theirs = each.partition("=")
        if name not in COLUMNS or not sign or not theirs:
            raise ConfigError(
                f"--column {each!r} is not NAME=THEIRS with a NAME of {', '.join(COLUMNS)}.", code="bad_value"
            )
        found[name] = theirs
    return found


def _write_down(job: Job, place: str, pieces: list[Piece]) -> None:
    """Save the job of the folder, or refuse a folder of another job."""
    listed = hashlib.sha256(json.dumps([asdict(each) for each in pieces]).encode("utf-8", "replace"))
    said = {
        "source": place, "kind": job.kind, "options": asdict(job.options), "pieces": len(pieces),
        "pieces_sha256": listed.hexdigest(), "settings": job.settings.model_dump(mode="json"),
    }  # fmt: skip
    begin_job(job.output / JOB, said)
    make_folder(job.output / "parts")
    sweep(job.output / "parts")
    for folder in (job.output / "pictures").glob("??"):
        sweep(folder)


def _run(job: Job, todo: list[tuple[int, Piece]], workers: int, warn: Warn) -> Iterator[dict[str, Any]]:
    if workers:
        from cm3kit.web.workers import run_in_processes

        yield from run_in_processes(job, todo, workers, run_piece, warn)
        return
    for number, piece in todo:
        if (counts := run_piece(job, number, piece, {})) is not None:
            yield counts


def run_piece(
    job: Job,
    number: int,
    piece: Piece,
    given_up: Mapping[str, str],
    at: Callable[[str], None] = lambda key: None,
) -> dict[str, Any] | None:
    """Write one part; None if another process published it first.

    Args:
        given_up: keys of pages that are not tried again, and the reasons.
        at: called with the key of each page before it is read, and with "" after it.
    """
    source = load_sources()[job.kind]()
    try:
        with publishing(job.part(number)) as folder, closing(PartWriter(folder, job.store)) as writer:
            for item in _items(source, piece, job.options):
                writer.add(_one(item, job.settings, given_up, at))
            return writer.finish()
    except OutputError as error:
        if error.code == "exists" and job.part(number).is_dir():
            return None
        raise


def _items(source: Source, piece: Piece, options: SourceOptions) -> Iterator[Item]:
    """The items of a piece; an unforeseen error of the source ends the piece, and is an item."""
    count = 0
    try:
        for item in source.items(piece, options):
            count += 1
            yield item
    except BaseException as error:
        if stops(error) or isinstance(error, Cm3kitError):
            raise
        start = piece.names[0] if piece.names else piece.start
        told = f"what follows the first {count} of this part cannot be read: {type(error).__name__}: {error}"
        yield Item(f"{piece.place}#{start} + {count}", None, reason="unreadable", detail=told)


def _one(
    item: Item, settings: WebSettings, given_up: Mapping[str, str], at: Callable[[str], None]
) -> Record | Dropped:
    if item.key in given_up:
        return Dropped(item.key, given_up[item.key])
    if item.data is None:
        return Dropped(item.key, item.reason, " ".join(item.detail.split())[:200])
    at(item.key)
    found = html_to_record(item.data, item.find, settings, key=item.key, about=item.about)
    at("")
    return found
