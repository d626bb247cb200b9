"""From a file and the places that a user points at to a page with gaps."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from cm3kit_tokenizers.document import Picture
from cm3kit_tokenizers.errors import ConfigError, PageError, PictureError
from cm3kit_tokenizers.html.spans import MAX_BYTES
from cm3kit_tokenizers.page import Box, Page
from cm3kit_tokenizers.pictures import picture_size, resolve_src

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
    page = Page.parse(read_bytes(file), None if file == STDIN else Path(file).resolve().parent)
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


def companions(page: Page, folder: Path) -> list[tuple[Path, bytes]]:
    """The pictures that a page names in its own folder, as files of `folder`, so that it shows there too.

    What leaves the page's folder, is missing or is no picture is left out.
    """
    if page.base is None or folder.resolve() == page.base.resolve():
        return []
    named = {node.src.strip() for node in page.nodes() if isinstance(node, Picture)}
    found = []
    for src in sorted(src for src in named if not src.lower().startswith("data:")):
        with suppress(PictureError):
            content = resolve_src(src, page.base)
            picture_size(content)
            found.append((folder / unquote(re.split("[?#]", src, maxsplit=1)[0]), content))
    return found


def read_bytes(file: str | Path) -> bytes:
    """A file's bytes (`-` is standard input), PageError if there is none."""
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
