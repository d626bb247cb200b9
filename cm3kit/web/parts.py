"""Prepared data on disk: records in Parquet, pictures in one store by content, and rejects.

    parts/000012/documents.parquet   one row per page
    parts/000012/rejects.jsonl       key, reason and detail of every dropped page
    parts/000012/audit.json          counts
    pictures/ab/ab12….webp           named by the SHA-256 of the file
    job.json                         source and settings; a run with others is refused
    audit.json, report.md            counts of all parts, once all are done

A part is published atomically (`cm3kit.publish`): a folder under its name means that the part is done.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cm3kit.data.prepared import DOCUMENTS as DOCUMENTS
from cm3kit.data.prepared import part_folders as part_folders
from cm3kit.data.prepared import read_part as read_part
from cm3kit.extras import need
from cm3kit.publish import write_atomic
from cm3kit.web.picture import Stored
from cm3kit.web.record import Dropped, Record

REJECTS, AUDIT = "rejects.jsonl", "audit.json"
_ROWS = 256


def schema() -> Any:
    """Columns of `documents.parquet`."""
    arrow = need("pyarrow", "web", "Writing records")
    text = arrow.string()
    picture = {"sha256": text, "mime": text, "width": arrow.int32(), "height": arrow.int32(), "src": text}
    columns = {each.name: text for each in fields(Record)}
    columns |= {
        "chars": arrow.int64(),
        "pictures": arrow.list_(arrow.struct(list(picture.items()))),
        "dropped": arrow.list_(arrow.struct([("src", text), ("reason", text)])),
        "sha256": text,
    }
    return arrow.schema(list(columns.items()))


@dataclass(frozen=True)
class Store:
    """Pictures, named by their content."""

    root: Path

    def path(self, sha256: str, mime: str) -> Path:
        """Path of a picture."""
        return self.root / sha256[:2] / f"{sha256}.{mime.removeprefix('image/')}"

    def put(self, picture: Stored) -> None:
        """Write a picture atomically unless it exists."""
        path = self.path(picture.sha256, picture.mime)
        try:
            if path.stat().st_size == len(picture.data):
                return
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, picture.data, force=True)


class PartWriter:
    """Writes one part into a folder before it is published; memory does not grow with the part."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = folder, store
        parquet = need("pyarrow.parquet", "web", "Writing records")
        self._schema = schema()
        self._file = parquet.ParquetWriter(folder / DOCUMENTS, self._schema, compression="zstd")
        # Names of members and columns may hold lone surrogates.
        self._rejects = (folder / REJECTS).open("w", encoding="utf-8", errors="replace")
        self._rows: list[dict[str, Any]] = []
        self._seen: set[bytes] = set()
        self.pages: Counter[str] = Counter()
        self.pictures: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()

    def add(self, found: Record | Dropped) -> None:
        """Write a record or a reject."""
        self.pages["in"] += 1
        if isinstance(found, Record):
            digest = bytes.fromhex(found.sha256)
            if digest in self._seen:
                found = Dropped(found.key, "duplicate")
            self._seen.add(digest)
        if isinstance(found, Dropped):
            self.pages[found.reason] += 1
            self._rejects.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")
            return
        self.pages["kept"] += 1
        self.pictures["kept"] += len(found.pictures)
        self.pictures.update(reason for _, reason in found.dropped)
        self.pictures.update("bad_metadata" for each in found.pictures if each.fault)
        self.sums.update(chars=found.chars, html_bytes=len(found.html.encode()))
        for picture in found.pictures:
            self.store.put(picture)
        self._rows.append(row_of(found))
        if len(self._rows) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        arrow = need("pyarrow", "web", "Writing records")
        if self._rows:
            self._file.write_table(arrow.Table.from_pylist(self._rows, self._schema))
            self._rows.clear()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._rejects.close()

    def finish(self) -> dict[str, dict[str, int]]:
        """Finish the files, and return the counts."""
        self._flush()
        self.close()
        counts = {"pages": dict(self.pages), "pictures": dict(self.pictures), "sums": dict(self.sums)}
        (self.folder / AUDIT).write_text(json.dumps(counts, indent=1, sort_keys=True), encoding="utf-8")
        return counts


def row_of(record: Record) -> dict[str, Any]:
    """A record as a row of `schema()`."""
    plain = {each.name: getattr(record, each.name) for each in fields(Record)}
    pictures = [
        {name: getattr(each, name) for name in ("sha256", "mime", "width", "height", "src")}
        for each in record.pictures
    ]
    dropped = [{"src": src, "reason": reason} for src, reason in record.dropped]
    row = {**plain, "pictures": pictures, "dropped": dropped, "sha256": record.sha256}
    return {name: _sayable(value) if isinstance(value, str) else value for name, value in row.items()}


def _sayable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def read_rejects(part: Path) -> Iterator[dict[str, str]]:
    """Keys and reasons of the pages that one part dropped."""
    with (part / REJECTS).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def audit_of(folder: Path) -> dict[str, Any]:
    """Summed counts of all finished parts."""
    total: dict[str, Counter[str]] = {"pages": Counter(), "pictures": Counter(), "sums": Counter()}
    parts = part_folders(folder)
    for part in parts:
        counts = json.loads((part / AUDIT).read_text(encoding="utf-8"))
        for name, counter in total.items():
            counter.update(counts[name])
    return {"parts": len(parts), **{name: dict(sorted(each.items())) for name, each in total.items()}}
