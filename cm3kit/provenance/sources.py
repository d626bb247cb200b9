"""The source of a filled page in its recipe: the original bytes of the gaps, and a hash of the whole.

A fill replaces only the bytes of its gap, so the filled page contains all other bytes of its source.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cm3kit_tokenizers.errors import DataError, PictureError
from cm3kit_tokenizers.page import Page, PageGap
from cm3kit_tokenizers.pictures import load_picture

Span = tuple[int, int]


def source_of(page: Page, spans: Sequence[Span], folder: Path | None = None) -> dict[str, Any]:
    """The recipe fields from which `page_of` restores the source.

    Args:
        spans: the byte range of each gap in the filled page.
        folder: of the filled page; the path of the source's folder is relative to it.
    """
    pictures = _pictures(page)
    source: dict[str, Any] = {
        "sha256": sha256(page.data),
        "codec": page.codec,
        "gaps": [_fields(gap) for gap in page.gaps],
        # Latin-1: one character per byte.
        "replaced": [page.data[gap.start : gap.end].decode("latin-1") for gap in page.gaps],
        "spans": [list(span) for span in spans],
    }
    if page.covers:
        source["covers"] = [list(each) for each in _covers(page, spans)]
    if pictures and page.base is not None:
        home = folder.resolve() if folder else None
        source["pictures"] = pictures
        source["base"] = os.path.relpath(page.base, home)
        if page.root is not None:
            source["root"] = os.path.relpath(page.root, home)
    return source


def _covers(page: Page, spans: Sequence[Span]) -> Iterator[tuple[int, int, int, str]]:
    """Removed attributes: start and end in the source, position in the filled page, and text."""
    longer = [
        (gap.start, (stop - start) - (gap.end - gap.start))
        for gap, (start, stop) in zip(page.gaps, spans, strict=True)
    ]
    shorter = 0
    for start, end in page.covers:
        at = start + sum(more for place, more in longer if place < start) - shorter
        yield start, end, at, page.data[start:end].decode("latin-1")
        shorter += end - start


def page_of(source: Mapping[str, Any], filled: bytes, folder: Path) -> Page:
    """Restore the source with its gaps from a filled page in `folder`.

    Raises:
        DataError: the filled page was changed, or the recipe is malformed (`bad_data`); a picture of
            the source is missing or has changed (`bad_data`).
    """
    try:
        gaps = tuple(_gap(each) for each in source["gaps"])
        covers = [(int(a), int(b), int(at), str(text)) for a, b, at, text in source.get("covers") or ()]
        data = _undone(filled, source["spans"], source["replaced"], covers)
        wanted, codec = str(source["sha256"]), str(source["codec"])
        pictures = dict(source.get("pictures") or {})
        homes: list[tuple[Path, Path | None]] = [(folder, None)]
        if pictures:
            root = folder / str(source["root"]) if "root" in source else None
            homes.append((folder / str(source["base"]), root))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the recipe's source is malformed ({error}); it was edited", code="bad_data"
        ) from error
    if sha256(data) != wanted:
        raise DataError("it was changed after it was written", code="bad_data")
    taken = tuple((start, end) for start, end, _, _ in covers)
    pages = [
        Page(data, base.resolve(), codec, gaps, root.resolve() if root else None, covers=taken)
        for base, root in homes
    ]
    page = next((each for each in pages if _missing(pictures, each) is None), None)
    if page is None:
        raise DataError(
            f"the picture {_missing(pictures, pages[-1])!r} of its source is missing or has changed",
            code="bad_data",
        )
    return page


def sha256(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _pictures(page: Page) -> dict[str, str]:
    """Hashes of the page's pictures in files, by their addresses."""
    found: dict[str, str] = {}
    site = page.site()

    def usable(address: str) -> bool:
        try:
            data = site(address)
            load_picture(data)
        except PictureError:
            return False
        if not address.strip().lower().startswith("data:"):
            found[address] = sha256(data)
        return True

    page.nodes(usable)
    return found


def _missing(pictures: Mapping[str, str], page: Page) -> str | None:
    """The first picture that is missing or has changed."""
    for src, wanted in pictures.items():
        try:
            if sha256(page.site()(src)) != wanted:
                return src
        except PictureError:
            return src
    return None


def _undone(
    filled: bytes,
    spans: Sequence[Sequence[int]],
    replaced: Sequence[str],
    covers: Sequence[tuple[int, int, int, str]],
) -> bytes:
    parts, at = [], 0
    edits = [(start, stop, text) for (start, stop), text in zip(spans, replaced, strict=True)]
    for start, stop, text in sorted([*edits, *((at, at, text) for _, _, at, text in covers)]):
        parts += [filled[at:start], text.encode("latin-1")]
        at = stop
    return b"".join((*parts, filled[at:]))


def _fields(gap: PageGap) -> dict[str, Any]:
    """A gap in the form that `_gap` reads, with size and constraint if it has them."""
    optional = ("size", "constraint")
    return {name: value for name, value in asdict(gap).items() if name not in optional or value is not None}


def _gap(fields: Mapping[str, Any]) -> PageGap:
    box, constraint = fields.get("box"), fields.get("constraint")
    read = {"box": tuple(box) if box else None, "inside": tuple(fields.get("inside", ()))}
    return PageGap(**{**fields, **read, "constraint": tuple(constraint) if constraint else None})
