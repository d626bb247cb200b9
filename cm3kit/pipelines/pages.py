"""From a file and the places that a user points at to a page with gaps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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


def read_page(file: str, selectors: Sequence[str] = (), regions: Sequence[tuple[str, Box]] = ()) -> Page:
    """The page of a file (`-` is standard input) with the gaps written in it and pointed at.

    Raises:
        PageError: the file is missing, empty, unreadable or no page, or has no gap (`no_mask`).
    """
    page = Page.parse(_bytes(file), None if file == STDIN else Path(file).resolve().parent)
    for selector in selectors:
        page = page.select(selector)
    for name, box in regions:
        page = page.region(name, box)
    if not page.gaps:
        raise PageError(
            f'{file} has no gap to fill; write <mask> where something is missing, or give --select "p.intro" '
            "or --image hero.png --box 0,0,32,32",
            code="no_mask",
        )
    return page


def _bytes(file: str) -> bytes:
    if file == STDIN:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        with open(file, "rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise PageError(f"{file} does not exist; check the path", code="no_file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PageError(
            f"{file} cannot be read: {reason}; give an HTML file", code="unreadable_file"
        ) from None
