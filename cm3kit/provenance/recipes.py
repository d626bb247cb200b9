"""Where the recipe of a file is stored, and how it is read.

A picture has it in a text chunk, a generated page in an inert script element. Text and filled pages, which must not
contain other bytes, have it in a file beside them or in the manifest of their folder.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from cm3kit.fill.pages import read_bytes
from cm3kit.images import SOURCE_TYPE
from cm3kit.json_lines import dump_json, objects
from cm3kit.provenance.sources import sha256
from cm3kit_tokenizers.errors import DataError

SIDECAR = ".cm3kit.json"
MANIFEST, RUN = "manifest.jsonl", "run.json"
HASH = "content_sha256"
_SCRIPT = re.compile(r'<script type="application/json" id="cm3kit">(.*?)</script>', re.S)
_MARK = re.compile(r'<meta name="generator" content="cm3kit[ "]')


@dataclass(frozen=True, slots=True)
class Recipe:
    """A file and its recipe.

    Attributes:
        made: the fields of `records`: task, prompt, seed, index, settings, model, hashes, versions; empty if the file
            has only the AI mark.
        where: where it was found: chunk, page, sidecar, manifest, or nothing.
        marked: whether the file has the machine-readable AI mark.
        changed: whether the file was changed after it was written; None if unknown.
    """

    path: Path
    content: bytes
    made: Mapping[str, Any]
    where: str
    marked: bool
    changed: bool | None = None

    def told(self) -> dict[str, Any]:
        """All fields as JSON values, those of the request first."""
        names = ("prompt", "page", "seed", "index", "task", "model")
        first = {key: self.made[key] for key in names if key in self.made}
        return {
            **first, "file": str(self.path), "found_in": self.where, "changed": self.changed,
            "ai_mark": SOURCE_TYPE if self.marked else None, **self.made,
        }  # fmt: skip


def sidecar(path: Path) -> Path:
    """Path of the recipe file of a file that cannot embed it."""
    return path.with_name(path.name + SIDECAR)


def encode_sidecar(record: Mapping[str, Any], content: bytes) -> bytes:
    """Content of a recipe file, with the hash of the output."""
    return f"{dump_json({**record, HASH: sha256(content)}, indent=2)}\n".encode()


def read_recipe(path: Path) -> Recipe:
    """The recipe of a file.

    Raises:
        PageError: the file does not exist or cannot be read.
        DataError: it has neither a recipe nor the AI mark (`no_recipe`).
    """
    content = read_bytes(path)
    marked, own = embedded(content)
    if own is not None and _is_png(content):
        return Recipe(path, content, own, "chunk", marked)
    for where, found in (("sidecar", _beside(path)), ("manifest", _listed(path))):
        if found is not None:
            wanted = found.pop(HASH, None)
            changed = None if wanted is None else wanted != sha256(content)
            return Recipe(path, content, found, where, marked, changed)
    if own is not None:
        return Recipe(path, content, own, "page", marked)
    if marked:
        return Recipe(path, content, {}, "nothing", marked)
    raise DataError(
        f"{path} has no recipe, and neither {sidecar(path).name} nor {MANIFEST} beside it has one; give a"
        " file that cm3kit wrote",
        code="no_recipe",
    )


def listed_files(folder: Path) -> list[Path]:
    """The files listed in a run's manifest, in order; DataError (`no_file`, `empty_file`) if there are none."""
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} has no {MANIFEST}; give the folder of a run", code="no_file")
    found = [folder / name for row in rows(folder) if (name := name_of(row)) is not None]
    if not found:
        raise DataError(f"{folder / MANIFEST} lists no files", code="empty_file")
    return list(dict.fromkeys(found))


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a run's manifest, merged with the common fields of `run.json`; torn lines are skipped."""
    run = {key: value for key, value in read_run(folder).items() if key not in ("n", "prompts", "variants")}
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise DataError(f"{folder / MANIFEST} cannot be read: {error}", code="unreadable_file") from error
    for row in objects(data):
        yield _whole(run, row)


def _whole(run: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A row merged with the common fields; rows of `sample run` have only their own options."""
    found = {**run, **row}
    if isinstance(row.get("sha256"), str):
        found |= {HASH: row["sha256"], "sha256": run.get("sha256")}
    if "sample" in row:
        found["index"] = row["sample"]
    options = [each.get("options") for each in (run, row)]
    found["options"] = {
        key: value for each in options if isinstance(each, dict) for key, value in each.items()
    }
    return found


def read_run(folder: Path) -> dict[str, Any]:
    """The common fields of a run (`run.json`, or the newest file of `runs/`); empty if there are none."""
    found = _json(folder / RUN)
    if found is None:
        processes = sorted((folder / "runs").glob("*.json"))
        found = _json(processes[-1]) if processes else None
    return found or {}


def name_of(row: Mapping[str, Any]) -> str | None:
    """The file of a manifest's row; None if there is none or its path leaves the folder."""
    name = row.get("path") or row.get("file")
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    return name


def _beside(path: Path) -> dict[str, Any] | None:
    return _json(sidecar(path))


def _listed(path: Path) -> dict[str, Any] | None:
    """The last manifest line of the file, in its folder or one of the two above."""
    for folder in list(path.absolute().parents)[:3]:
        manifest = folder / MANIFEST
        if manifest.is_file():
            known = manifest.stat()
            listed = _index(folder, known.st_mtime_ns, known.st_size)
            row = listed.get(path.absolute().relative_to(folder).as_posix())
            if row is not None:
                return dict(row)
    return None


@lru_cache(maxsize=4)
def _index(folder: Path, changed: int, size: int) -> Mapping[str, Mapping[str, Any]]:
    """The last row of each file of a manifest; the cache key includes its time and size."""
    return {name: row for row in rows(folder) if (name := name_of(row)) is not None}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def embedded(content: bytes) -> tuple[bool, dict[str, Any] | None]:
    """Whether a file has the AI mark, and its embedded recipe."""
    if _is_png(content):
        text = _chunks(content)
        return SOURCE_TYPE in text.get("XML:com.adobe.xmp", ""), _object(text.get("cm3kit"))
    page = content.decode("utf-8", "replace")
    found = _SCRIPT.search(page)
    return SOURCE_TYPE in page or bool(_MARK.search(page)), _object(found[1] if found else None)


def _is_png(content: bytes) -> bool:
    return content.startswith(b"\x89PNG\r\n")


def _chunks(content: bytes) -> dict[str, str]:
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            picture.load()
            return dict(picture.text)  # type: ignore[attr-defined]
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"this PNG is damaged: {error}", code="unreadable_file") from error


def _object(text: str | None) -> dict[str, Any] | None:
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
