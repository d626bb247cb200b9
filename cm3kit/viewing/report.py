"""A run as one self-contained HTML page: results, prompts and settings.

Model output is untrusted. Pages are shown in sandboxed frames in which nothing runs and nothing loads (`display`);
all other text is escaped; and the page's policy allows only its own script, which creates frames when they become
visible.
"""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cm3kit.json_lines import dump_json
from cm3kit.provenance.recipes import name_of, read_run, rows
from cm3kit.provenance.sources import page_of
from cm3kit.viewing.diff import changed_lines
from cm3kit.viewing.display import data_address, display, marks_of
from cm3kit.viewing.document import document, render, resource
from cm3kit_tokenizers.errors import DataError

Watch = Callable[[int, int], None]
LARGE = 20 * 2**20
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
PAGES = (".html", ".htm")
SETTINGS = ("task", "decoder", "sampler", "model", "version", "torch", "device", "dtype", "machine", "seed")


@dataclass(frozen=True, slots=True)
class Entry:
    """One result: its name, recipe and content; `before` is the source of a filled page."""

    name: str
    row: Mapping[str, Any]
    content: bytes
    folder: Path
    before: bytes | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """The page, the number of its results, and warnings."""

    content: bytes
    entries: int
    warnings: tuple[str, ...] = ()


def build(folder: Path, watch: Watch = lambda done, total: None) -> Built:
    """The report of a run's folder.

    Raises:
        DataError: the folder has no manifest (`no_file`), or an empty one (`empty_file`).
    """
    if not (folder / "manifest.jsonl").is_file():
        raise DataError(f"{folder} has no manifest.jsonl; give the folder of a run", code="no_file")
    for own in ("manifest.jsonl", "run.json", "runs"):
        if (folder / own).is_symlink():
            raise DataError(
                f"{folder / own} is a symbolic link, which a report does not follow", code="bad_data"
            )
    listed, lost, failed = [row for row in rows(folder)], [], 0
    entries = []
    for done, row in enumerate(listed):
        name = name_of(row)
        if name is None:
            failed += 1
        elif (entry := _entry(folder, name, row)) is None:
            lost.append(name)
        else:
            entries.append(entry)
        watch(done + 1, len(listed))
    if not entries:
        raise DataError(f"{folder / 'manifest.jsonl'} lists no existing file", code="empty_file")
    warnings = [f"{len(lost)} files are missing, such as {lost[0]}"] if lost else []
    warnings += [f"{failed} rows have no file"] if failed else []
    content = page(folder.resolve().name, read_run(folder), entries).encode()
    if len(content) > LARGE:
        warnings.append(f"the report has {len(content) >> 20} MiB")
    return Built(content, len(entries), tuple(warnings))


def _entry(folder: Path, name: str, row: Mapping[str, Any]) -> Entry | None:
    # A link could embed any file of the user in the page.
    if any(
        folder.joinpath(*Path(name).parts[: depth + 1]).is_symlink() for depth in range(len(Path(name).parts))
    ):
        return None
    try:
        content = (folder / name).read_bytes()
    except OSError:
        return None
    before = None
    if isinstance(row.get("source"), Mapping):
        try:
            before = page_of(row["source"], content, (folder / name).parent).data
        except DataError:
            before = None
    return Entry(name, row, content, (folder / name).parent, before)


def page(title: str, run: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    """The complete page."""
    frames: list[str] = []
    cards = "".join(_card(number, each, frames) for number, each in enumerate(entries))
    facts = {**(entries[0].row if entries else {}), **run}
    again = command(facts) if run else shlex.join(["cm3kit", "reproduce", title])
    body = render(
        "report.html", title=title, summary=summary(facts, len(entries)), command=again,
        settings=Markup(settings(facts)), sheet=Markup(_sheet(entries)), cards=Markup(cards),
    )  # fmt: skip
    return document(
        title, body, resource("report.css"), script=resource("report.js"), data={"frames": frames}
    )


def summary(facts: Mapping[str, Any], count: int) -> str:
    """One line on the results."""
    made = f"{count:,} result{'s' if count != 1 else ''}"
    told = [made, *(str(facts[key]) for key in ("task", "model", "decoder") if facts.get(key))]
    return " · ".join(told)


def command(facts: Mapping[str, Any]) -> str:
    """The command that repeats the run, as far as it is known, quoted for a shell."""
    task = str(facts.get("task") or "image")
    words = ["cm3kit"]
    words += ["infill", str(facts.get("page") or "page.html")] if task == "infill" else ["generate"]
    if task != "infill":
        words += ["--task", task] if task != "image" else []
        words += (
            [str(facts.get("prompt") or "")] if facts.get("prompts", 1) == 1 else ["--prompt-file", "PROMPTS"]
        )
    for flag, key in (("--model", "model"), ("--decoder", "decoder"), ("--seed", "seed"), ("-n", "n"),
                      ("--variants", "variants")):  # fmt: skip
        words += [flag, str(facts[key])] if facts.get(key) is not None else []
    for key, value in (facts.get("options") or {}).items():
        words += _flag(str(key), value)
    return shlex.join(words)


def _flag(key: str, value: Any) -> list[str]:
    name = {"guidance": "guidance-scale", "modifiers": "modifier", "overrides": "set"}.get(key, key).replace(
        "_", "-"
    )
    if key == "decoder":
        return []
    if isinstance(value, bool):
        return [f"--{name}"] if value else [f"--no-{name}"]
    if isinstance(value, list | tuple):
        return [word for each in value for word in _flag(key, each)]
    if isinstance(value, Mapping):
        rest = ",".join(f"{option}={each}" for option, each in value.items() if option != "name")
        return [f"--{name}", f"{value.get('name')},{rest}".rstrip(",")]
    return [f"--{name}", str(value)]


def settings(facts: Mapping[str, Any]) -> str:
    """A table of the fields common to the whole run."""
    known = {key: facts[key] for key in SETTINGS if facts.get(key) is not None}
    known |= {f"options.{key}": value for key, value in (facts.get("options") or {}).items()}
    hashes = facts.get("sha256") if isinstance(facts.get("sha256"), Mapping) else {}
    known |= {f"sha256 of {name}": value for name, value in (hashes or {}).items()}
    return "".join(
        f'<tr><th scope="row">{html.escape(str(key))}</th><td>{html.escape(_shown(value))}</td></tr>'
        for key, value in known.items()
    )


def _sheet(entries: Iterable[Entry]) -> str:
    """Thumbnails of all pictures that link to their entries."""
    return "".join(
        f'<a href="#r{number}" title="{html.escape(_title(each), quote=True)}">'
        f'<img data-of="{number}" alt="{html.escape(_title(each), quote=True)}"></a>'
        for number, each in enumerate(entries)
        if each.name.lower().endswith(PICTURES)
    )


def _card(number: int, entry: Entry, frames: list[str]) -> str:
    """One result; its pages are appended to `frames`."""
    name = entry.name.lower()
    if name.endswith(PICTURES):
        alt = html.escape(_title(entry), quote=True)
        body = f'<img class="made" src="{data_address(entry.content)}" alt="{alt}" loading="lazy" decoding="async">'
    elif name.endswith(PAGES):
        body = _pages(entry, frames)
    else:
        body = f"<blockquote>{html.escape(_text(entry.content))}</blockquote>"
    words = (
        f"<p>{html.escape(str(entry.row['text']))}</p>"
        if entry.row.get("text") and name.endswith(PICTURES)
        else ""
    )
    return (
        f'<article id="r{number}"><h3>{html.escape(_title(entry))}</h3>{body}{words}'
        f'<p class="facts">{html.escape(_facts(entry))}</p></article>'
    )


def _pages(entry: Entry, frames: list[str]) -> str:
    """A page; for a filled one also its source and the changes."""
    after = display(
        entry.content, entry.folder, marks_of(entry.row["source"]) if entry.before is not None else ()
    )
    shown = [("after", after)] if entry.before is not None else [("page", after)]
    if entry.before is not None:
        shown.insert(0, ("before", display(entry.before, entry.folder)))
    figures = ""
    for label, copy in shown:
        frames.append(copy)
        place = f'<div class="frame" data-frame="{len(frames) - 1}"></div>'
        figures += f"<figure><figcaption>{label}</figcaption>{place}</figure>"
    changes = ""
    if entry.before is not None:
        lines = changed_lines(entry.before, entry.content)
        changes = f"<details open><summary>Changes</summary><pre>{lines}</pre></details>"
    source = html.escape(_text(entry.content)[:20_000])
    return f'<div class="pages">{figures}</div>{changes}<details><summary>Source</summary><pre>{source}</pre></details>'


def _title(entry: Entry) -> str:
    return " ".join(str(entry.row.get("prompt") or entry.row.get("id") or entry.name).split())[:300]


def _facts(entry: Entry) -> str:
    row = entry.row
    told = [entry.name, *(f"{key} {row[key]}" for key in ("seed", "index") if row.get(key) is not None)]
    score = row.get("logprob")
    if isinstance(score, int | float):
        told.append(f"log-probability {score:.2f}")
    told += [f"{key} {row[key]}" for key in ("passes", "token_forwards", "error") if row.get(key) is not None]
    if row.get("ended") is False:
        told.append("cut at the length limit")
    return " · ".join(told)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _shown(value: Any) -> str:
    return dump_json(value) if isinstance(value, Mapping) else str(value)
