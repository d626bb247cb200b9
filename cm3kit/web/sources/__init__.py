"""Where pages come from: one file a kind, registered by name.

A source cuts a place into pieces, in the same order every time, and reads the pages of a piece one by one. A page
that cannot be read comes as an item with a reason, so that nothing is passed over in silence.
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
    """The `Find` of a page that comes without pictures."""
    raise Refused("no_file")


@dataclass(frozen=True, slots=True)
class Item:
    """A page as its source holds it; `data` is None where it cannot be read, for `reason`."""

    key: str
    data: bytes | None
    find: Find = nothing
    about: About = field(default_factory=About)
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """The smallest share of a source that is done at once: a file or folder, and which pages of it."""

    place: str
    names: tuple[str, ...] = ()
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """`pictures` is a folder of pictures that the source names by address; `columns` renames those of rows."""

    pages: int = 500
    pictures: str = ""
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """One kind of source."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """All pieces, in an order that depends on nothing but the source."""

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """The pages of a piece, in order."""


source: Registry[type[Source]] = Registry("kind of source")


def load_sources() -> Registry[type[Source]]:
    """The registry, with every kind that ships in it."""
    for name in MODULES:
        importlib.import_module(f"{__name__}.{name}")
    plugins.load()
    return source


def detect(place: str, flag: str = "--from") -> str:
    """The kind of source that a path looks like; DataError, which names the flag that chooses, if that is open."""
    kinds = kinds_of(place, flag)
    if len(kinds) == 1:
        return kinds.pop()
    found = f"holds {', '.join(sorted(kinds))}" if kinds else "is of no known kind"
    raise DataError(f"{place} {found}; choose one with {flag}.", code="bad_data")


def kinds_of(place: str, flag: str = "--from") -> set[str]:
    """The kinds of source that the files of a path are of; DataError (`no_file`) if it is not there."""
    path = Path(place)
    if not path.exists():
        raise DataError(f"{place} does not exist; for a hub data set say {flag} huggingface.", code="no_file")
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
    """`About` of values that a row holds; what is no text says nothing."""
    return About(
        url=url if isinstance(url, str) else "",
        source=kind,
        meta=meta or {},
        license=licence if isinstance(licence, str) else "",
    )
