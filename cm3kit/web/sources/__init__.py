"""Sources of pages: one file per kind, registered by name.

A source splits its input into pieces, in a fixed order, and reads the pages of a piece one by one. A page that cannot
be read becomes an item with a reason, so that nothing is skipped silently.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cm3kit import plugins
from cm3kit.registry import Registry
from cm3kit.web.reasons import Refused
from cm3kit.web.record import About, Find
from cm3kit_tokenizers.errors import DataError

MODULES = ("folder", "huggingface", "mmc4", "obelics", "pairs", "parquet", "warc", "webdataset")


def nothing(address: str) -> bytes:
    """The `Find` of a page without pictures."""
    raise Refused("no_file")


@dataclass(frozen=True, slots=True)
class Item:
    """A page as the source stores it; `data` is None if it cannot be read, with a `reason`."""

    key: str
    data: bytes | None
    find: Find = nothing
    about: About = field(default_factory=About)
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """The unit of work of a source: a file or folder, and a range of its pages."""

    place: str
    names: tuple[str, ...] = ()
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """`pictures` is a folder with the pictures of the source's addresses; `columns` renames columns of rows."""

    pages: int = 500
    pictures: str = ""
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """One kind of source."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """All pieces, in an order that depends only on the source."""

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """The pages of a piece, in order."""


source: Registry[type[Source]] = Registry("kind of source")


def load_sources() -> Registry[type[Source]]:
    """The registry with all built-in kinds loaded."""
    for name in MODULES:
        importlib.import_module(f"{__name__}.{name}")
    plugins.load()
    return source


def detect(place: str, flag: str = "--from") -> str:
    """Detect the kind of source of a path; DataError, which names `flag`, if it is ambiguous."""
    kinds = kinds_of(place, flag)
    if len(kinds) == 1:
        return kinds.pop()
    found = f"holds {', '.join(sorted(kinds))}" if kinds else "is of an unknown kind"
    raise DataError(f"{place} {found}; choose one with {flag}.", code="bad_data")


def kinds_of(place: str, flag: str = "--from") -> set[str]:
    """The kinds of source of a path's files; DataError (`no_file`) if the path does not exist."""
    path = Path(place)
    if not path.exists():
        raise DataError(
            f"{place} does not exist; for a data set of the Hub give {flag} huggingface.", code="no_file"
        )
    if path.is_dir() and (path / "dataset_info.json").is_file():
        return {"huggingface"}
    return {kind for each in _named(path) if (kind := _kind(each))}


def _named(path: Path) -> list[Path]:
    return [path] if path.is_file() else [each for each in sorted(path.rglob("*")) if _kind(each)][:10_000]


def _kind(path: Path) -> str:
    name = path.name.lower()
    for suffixes, kind in (
        ((".html", ".htm", ".xhtml"), "folder"),
        ((".warc", ".warc.gz"), "warc"),
        ((".tar", ".tar.gz", ".tgz"), "webdataset"),
        ((".parquet",), "parquet"),
        ((".jsonl", ".jsonl.gz"), "mmc4"),
        ((".tsv", ".csv"), "pairs"),
    ):
        if name.endswith(suffixes):
            return kind
    return ""


def files(place: str, suffixes: tuple[str, ...]) -> list[str]:
    """The file itself, or all files below a folder with one of the suffixes, sorted; links are not followed."""
    path = Path(place)
    if not path.is_dir():
        found = [path] if path.is_file() else []
    else:
        found = [
            each
            for each in sorted(path.rglob("*"))
            if each.name.lower().endswith(suffixes) and each.is_file() and not each.is_symlink()
        ]
    if not found:
        raise DataError(f"{place} holds no {' or '.join(suffixes)} files.", code="no_file")
    return [str(each) for each in found]


def about(kind: str, url: object = "", meta: Mapping[str, Any] | None = None, licence: object = "") -> About:
    """`About` from values of a row; values that are not text are ignored."""
    return About(
        url=url if isinstance(url, str) else "",
        source=kind,
        meta=meta or {},
        license=licence if isinstance(licence, str) else "",
    )
