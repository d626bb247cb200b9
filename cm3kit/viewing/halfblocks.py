"""Pictures in a terminal: one character shows two pixels, in its foreground and background colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cm3kit.fill.pages import read_bytes
from cm3kit_tokenizers.pictures import load_picture

WIDTH, MOST, BETWEEN = 32, 8, 2


def half_blocks(picture: Image.Image, columns: int) -> str:
    """Lines of `▀` in 24-bit colours (ECMA-48 SGR 38;2 and 48;2), `columns` characters wide."""
    rows = max(1, round(picture.height * columns / picture.width / 2))
    small = picture.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BOX)
    pixels = small.tobytes()
    lines = []
    for row in range(rows):
        cells = []
        for column in range(columns):
            top, below = 3 * (2 * row * columns + column), 3 * ((2 * row + 1) * columns + column)
            upper, lower = pixels[top : top + 3], pixels[below : below + 3]
            cells.append("\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*upper, *lower))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def strip(paths: Sequence[Path], columns: int) -> str:
    """The first pictures side by side, as many as fit; PictureError if one cannot be read."""
    width = min(WIDTH, columns)
    count = max(1, min(len(paths), MOST, (columns + BETWEEN) // (width + BETWEEN)))
    blocks = [half_blocks(load_picture(read_bytes(path)), width).split("\n") for path in paths[:count]]
    height = max(map(len, blocks))
    empty = " " * width
    lines = [
        (" " * BETWEEN).join(block[row] if row < len(block) else empty for block in blocks)
        for row in range(height)
    ]
    more = [f"and {len(paths) - count} more"] if len(paths) > count else []
    return "\n".join([*lines, *more])
