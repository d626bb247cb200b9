"""The page that a filled page was made of, as its recipe keeps it: what stood in the gaps, and a hash of the whole.

A fill replaces the bytes of its gap and nothing else, so that the filled page holds all other bytes of its source.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cm3kit_tokenizers.document import Picture
from cm3kit_tokenizers.errors import DataError, PictureError
from cm3kit_tokenizers.page import Page, PageGap
from cm3kit_tokenizers.pictures import resolve_src

Span = tuple[int, int]


def source_of(page: Page, spans: Sequence[Span], folder: Path | None = None) -> dict[str, Any]:
    """What makes a filled page its source again.

    Args:
        spans: the byte range of the filled page that each gap has become.
        folder: where the filled page is kept; the folder of the source is named as seen from there.
    """
    pictures = _pictures(page)
    source: dict[str, Any] = {
        "sha256": sha256(page.data),
        "codec": page.codec,
        "gaps": [_fields(gap) for gap in page.gaps],
        # Latin-1, a character a byte.
        "replaced": [page.data[gap.start : gap.end].decode("latin-1") for gap in page.gaps],
        "spans": [list(span) for span in spans],
    }
    if pictures and page.base is not None:
        source["pictures"] = pictures
        source["base"] = os.path.relpath(page.base, folder.resolve() if folder else None)
    return source


def page_of(source: Mapping[str, Any], filled: bytes, folder: Path) -> Page:
    """The source with its gaps, from the filled page that lies in `folder`.

    Raises:
        DataError: the filled page was changed since, or the recipe is malformed (`bad_data`); a picture that
            the source names is another one now, or is not there (`bad_data`).
    """
    try:
        gaps = tuple(_gap(each) for each in source["gaps"])
        data = _undone(filled, source["spans"], source["replaced"])
        wanted, codec = str(source["sha256"]), str(source["codec"])
        pictures = dict(source.get("pictures") or {})
        bases = [folder, folder / str(source["base"])] if pictures else [folder]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the recipe's source is malformed ({error}); it was edited", code="bad_data"
        ) from error
    if sha256(data) != wanted:
        raise DataError("it was changed after it was written", code="bad_data")
    base = next((each for each in bases if _missing(pictures, each) is None), None)
    if base is None:
        raise DataError(
            f"the picture {_missing(pictures, bases[-1])!r} of its source is not there any more, or is another one",
            code="bad_data",
        )
    return Page(data, base, codec, gaps)


def sha256(content: bytes) -> str:
    """The hash in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _pictures(page: Page) -> dict[str, str]:
    """Hashes of the pictures that the page names and does not hold, by their addresses."""
    found = {}
    for node in page.nodes():
        if isinstance(node, Picture) and not node.src.strip().lower().startswith("data:"):
            with suppress(PictureError):
                found[node.src] = sha256(resolve_src(node.src, page.base))
    return found


def _missing(pictures: Mapping[str, str], base: Path) -> str | None:
    """The first picture that is not the one that it was."""
    for src, wanted in pictures.items():
        try:
            if sha256(resolve_src(src, base)) != wanted:
                return src
        except PictureError:
            return src
    return None


def _undone(filled: bytes, spans: Sequence[Sequence[int]], replaced: Sequence[str]) -> bytes:
    parts, at = [], 0
    for (start, stop), text in zip(spans, replaced, strict=True):
        parts += [filled[at:start], text.encode("latin-1")]
        at = stop
    return b"".join((*parts, filled[at:]))


def _fields(gap: PageGap) -> dict[str, Any]:
    """A gap as `_gap` reads it; a size is named where one is wished for."""
    return {name: value for name, value in asdict(gap).items() if name != "size" or value is not None}


def _gap(fields: Mapping[str, Any]) -> PageGap:
    box = fields.get("box")
    return PageGap(
        **{**fields, "box": tuple(box) if box else None, "inside": tuple(fields.get("inside", ()))}
    )
