"""From a file and the places that a user points at to a page with gaps."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cm3kit_tokenizers.errors import ConfigError, PageError
from cm3kit_tokenizers.html.spans import MAX_BYTES
from cm3kit_tokenizers.page import Box, Page

STDIN = "-"


def parse_box(text: str) -> Box:
    """`x,y,width,height` in pixels.

    Raises:
        ConfigError: not four whole numbers, or an empty box (`bad_box`).
    """
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--box {text!r} is not x,y,width,height; give four numbers", code="bad_box"
        ) from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise ConfigError(f"--box {text!r} is empty or negative; give a box in the picture", code="bad_box")
    return x, y, width, height


def read_page(
    file: str,
    selectors: Sequence[str] = (),
    regions: Iterable[tuple[str, Box]] = (),
    root: Path | None = None,
    uncover: bool = False,
    gaps: bool = True,
) -> Page:
    """The page of a file (`-` is standard input) with the gaps written in it and pointed at.

    Args:
        root: the folder of its site, see `Page`. uncover: see `Page.uncovered`.
        gaps: whether there must be one.

    Raises:
        PageError: the file is missing, empty, unreadable or no page, or has no gap (`no_mask`).
    """
    base = None if file == STDIN else Path(file).resolve().parent
    if root is not None and not root.is_dir():
        raise PageError(f"--root {root} is no folder; give the folder of the site", code="no_file")
    page = Page.parse(read_bytes(file), base, root.resolve() if root is not None else None)
    for selector in selectors:
        page = page.select(selector)
    for name, box in regions:
        page = page.region(name, box)
    if gaps and not page.gaps:
        raise PageError(
            f'{file} has no gap to fill; write <mask> where something is missing, or give --select "p.intro" '
            "or --image hero.png --box 0,0,32,32",
            code="no_mask",
        )
    return page.uncovered() if uncover else page


def read_bytes(file: str | Path) -> bytes:
    """A file's bytes (`-` is standard input), PageError if there is none."""
    if file == STDIN:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        with open(file, "rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise PageError(f"{file} does not exist; check the path", code="no_file") from None
    except IsADirectoryError:
        raise PageError(f"{file} is a folder; give a file in it", code="unreadable_file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PageError(
            f"{file} cannot be read: {reason}; give an HTML file", code="unreadable_file"
        ) from None
