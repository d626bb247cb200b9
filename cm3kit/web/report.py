"""Report, data-set card and validation of prepared data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cm3kit.claims import read_job
from cm3kit.publish import verify
from cm3kit.web.parts import REJECTS, Store, audit_of, part_folders, read_part, read_rejects
from cm3kit.web.reasons import NOTES, REASONS
from cm3kit.web.record import ADDRESS, read_nodes
from cm3kit_tokenizers.document import Picture
from cm3kit_tokenizers.errors import DataError
from cm3kit_tokenizers.html.minimal import render

_SHOWN = 5


def report(folder: Path, found: Mapping[str, Any]) -> str:
    """Counts as Markdown, with example keys for each reason."""
    pages, pictures, sums = (Counter(found.get(name, {})) for name in ("pages", "pictures", "sums"))
    examples: dict[str, list[str]] = {}
    for part in part_folders(folder):
        for line in read_rejects(part):
            keys = examples.setdefault(line["reason"], [])
            if len(keys) < _SHOWN:
                keys.append(line["key"])
    lines = [
        "# Prepared data", "",
        f"{pages['in']:,} pages in, {pages['kept']:,} kept, with {pictures['kept']:,} pictures,"
        f" {sums['chars']:,} characters of text and {sums['html_bytes']:,} bytes of minimal HTML.", "",
        "| pages dropped | reason | examples |", "|---|---|---|",
    ]  # fmt: skip
    for reason, count in pages.most_common():
        if reason not in ("in", "kept"):
            shown = ", ".join(f"`{_cell(key)}`" for key in examples.get(reason, []))
            lines.append(f"| {count:,} | {reason}: {REASONS[reason]} | {shown} |")
    lines += ["", "| pictures dropped | reason |", "|---|---|"]
    lines += [
        f"| {count:,} | {reason}: {REASONS[reason]} |"
        for reason, count in pictures.most_common()
        if reason != "kept" and reason not in NOTES
    ]
    if told := [(reason, count) for reason, count in pictures.most_common() if reason in NOTES]:
        lines += ["", "| pictures kept | fault |", "|---|---|"]
        lines += [f"| {count:,} | {reason}: {NOTES[reason]} |" for reason, count in told]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("`", "'").replace("\n", " ")[:80]


def stats(folder: Path) -> dict[str, Any]:
    """Counts of prepared data: pages, pictures by use, languages, licences, sizes."""
    found = audit_of(folder)
    languages: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    sizes: list[int] = []
    used: set[str] = set()
    for part in part_folders(folder):
        for row in read_part(part, ["lang", "license", "chars", "pictures"]):
            languages[row["lang"] or "not said"] += 1
            licences[row["license"] or "not said"] += 1
            sizes.append(row["chars"])
            used.update(each["sha256"] for each in row["pictures"])
    sizes.sort()
    at = {name: sizes[int(share * (len(sizes) - 1))] if sizes else 0 for name, share in _SHARES.items()}
    return {
        **found, "pictures_stored": len(used), "chars": at,
        "languages": dict(languages.most_common(20)), "licenses": dict(licences.most_common(20)),
    }  # fmt: skip


_SHARES = {"least": 0.0, "median": 0.5, "p90": 0.9, "most": 1.0}


def validate(
    folder: Path, watch: Callable[[int, int, str], None] = lambda done, total, note: None
) -> list[str]:
    """One line per fault; empty if the data are valid.

    Checks manifests and hashes, that every picture exists with the bytes of its name, that the minimal HTML parses
    back to itself, that keys are unique, and that counts equal those of the rows.
    """
    wrong: list[str] = []
    keys: Counter[str] = Counter()
    checked: dict[str, str | None] = {}
    store = Store(folder / "pictures")
    parts = part_folders(folder)
    for done, part in enumerate(parts, 1):
        if (damage := verify(part)) is not None:
            wrong.append(damage)
            continue
        kept = 0
        for row in read_part(part):
            kept += 1
            keys[row["key"]] += 1
            wrong += [f"{part.name}/{row['key']}: {each}" for each in _row(row, store, checked)]
        rejected = list(read_rejects(part))
        keys.update(each["key"] for each in rejected)
        counts = json.loads((part / "audit.json").read_text(encoding="utf-8"))["pages"]
        if counts.get("kept", 0) != kept or counts.get("in", 0) != kept + len(rejected):
            wrong.append(f"{part}: the counts differ from those of {REJECTS} and the rows")
        watch(done, len(parts), f"{len(wrong)} faults")
    wrong += [f"{key} occurs {count} times" for key, count in keys.items() if count > 1]
    return wrong


def check(
    folder: Path, watch: Callable[[int, int, str], None], warn: Callable[[str], None]
) -> dict[str, Any]:
    """Counts of valid data; DataError, after one line to `warn` per fault, if they are invalid."""
    wrong = validate(folder, watch)
    for line in wrong:
        warn(line)
    if wrong:
        raise DataError(f"{folder} has {len(wrong):,} faults; the first: {wrong[0]}.", code="bad_data")
    found = audit_of(folder)
    return {"faults": 0, "parts": found["parts"], "pages": found["pages"].get("kept", 0)}


def _row(row: Mapping[str, Any], store: Store, checked: dict[str, str | None]) -> list[str]:
    wrong = []
    nodes = read_nodes(row["html"])
    if render(nodes) != row["html"]:
        wrong.append("the HTML does not parse back to itself")
    if hashlib.sha256(row["html"].encode()).hexdigest() != row["sha256"]:
        wrong.append("the HTML does not match its sha256")
    named = {node.src.removeprefix(ADDRESS) for node in nodes if isinstance(node, Picture)}
    listed = {each["sha256"]: each["mime"] for each in row["pictures"]}
    if named != set(listed):
        wrong.append("the pictures do not match the HTML")
    for sha256, mime in listed.items():
        if sha256 not in checked:
            checked[sha256] = _picture(store.path(sha256, mime), sha256)
        wrong += [checked[sha256]] if checked[sha256] else []  # type: ignore[list-item]
    return wrong


def _picture(path: Path, sha256: str) -> str | None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    return None if found == sha256 else f"{path.name}: its content does not match its name"


def card(folder: Path) -> str:
    """A data-set card: YAML front matter and Markdown, as Hugging Face reads it."""
    found, job = stats(folder), read_job(folder / "job.json")
    pages, pictures = found["pages"], found["pictures"]
    names = [name for name in found["languages"] if name != "not said"]
    languages = "".join(f"\n- {json.dumps(each)}" for each in sorted({name[:2].lower() for name in names}))
    rows = "\n".join(f"| {_cell(name)} | {count:,} |" for name, count in found["licenses"].items())
    return f"""---
language:{languages or " []"}
task_categories:
- text-generation
- text-to-image
tags:
- cm3
- interleaved
---

# Pages of `{Path(job["source"]).name}`

Minimal HTML with pictures by content hash, prepared by cm3kit from a source of the kind `{job["kind"]}`.

{report(folder, found).split(chr(10), 2)[2]}
## Licences that the pages name

| licence | pages |
|---|---|
{rows}

{pages.get("opted_out", 0):,} pages that reserve text and data mining or say `noai` were dropped; the pages' directives
for robots are in the columns `robots`, `tdm` and `tdm_policy`. A page that declares no licence is not free to use.

## Columns

`parts/*/documents.parquet`: `key`, `url`, `html`, `pictures` (sha256, mime, width, height, src), `dropped` (src,
reason), `chars`, `lang`, `license`, `robots`, `tdm`, `tdm_policy`, `fetched_at`, `source`, `meta` (JSON), `sha256`
of `html`. {pictures.get("kept", 0):,} pictures on pages are {found["pictures_stored"]:,} files in `pictures/`.
"""


def inspect(folder: Path, key: str) -> dict[str, object]:
    """A page of prepared data by its key: its row, or why it was dropped."""
    for part in part_folders(folder):
        for row in read_part(part):
            if row["key"] == key:
                return dict(row)
        for line in read_rejects(part):
            if line["key"] == key:
                return dict(line)
    raise DataError(f"{folder} has no page {key!r}; its report names some.", code="no_file")
