"""Pictures from a colour bitmap font: character sequence → ligature glyph → PNG strike (CBDT/CBLC)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cm3kit_tokenizers.errors import Cm3kitError, DataError
from cm3kit_tokenizers.installing import install

VARIATION = 0xFE0F


class BitmapFont:
    """The colour glyphs of a font file such as NotoColorEmoji.ttf.

    Args:
        path: a TrueType font with CBDT, CBLC, cmap and GSUB tables.

    Raises:
        Cm3kitError: fontTools is not installed (`missing_extra`), or the font has no bitmaps.
    """

    def __init__(self, path: Path) -> None:
        try:
            from fontTools.ttLib import TTFont, TTLibError
        except ImportError as error:
            raise Cm3kitError(
                f"reading a font needs fontTools: {install('data')}.", code="missing_extra"
            ) from error
        if not path.is_file():
            raise DataError(
                f"{path} does not exist; it comes from the package fonts-noto-color-emoji.", code="no_file"
            )
        try:
            font: Any = TTFont(io.BytesIO(path.read_bytes()), lazy=True)
        except TTLibError as error:
            raise DataError(f"{path} is not a font: {error}.", code="bad_data") from error
        if "CBDT" not in font:
            raise DataError(f"{path} has no colour bitmaps (CBDT table).", code="bad_data")
        self._cmap: dict[int, str] = font.getBestCmap()
        self._strikes: dict[str, Any] = font["CBDT"].strikeData[0]
        self._ligatures = _ligatures(font)

    def glyph(self, codepoints: Sequence[int]) -> str | None:
        """Name of the single glyph of a character sequence, or None."""
        mapped = [(code, self._cmap.get(code)) for code in codepoints]
        names = [name for code, name in mapped if name is not None or code != VARIATION]
        if None in names:
            return None
        shaped = self._shape([str(name) for name in names])
        if len(shaped) != 1:  # the variation selector has a glyph in some fonts, and is optional in sequences
            bare = [str(name) for code, name in mapped if code != VARIATION]
            shaped = self._shape(bare)
        return shaped[0] if len(shaped) == 1 and shaped[0] in self._strikes else None

    def _shape(self, names: list[str]) -> list[str]:
        """Replace the longest ligature at each position, left to right, until nothing changes."""
        out: list[str] = []
        while names:
            best = next(
                (rule for rule in self._ligatures.get(names[0], ()) if rule[0] == names[: len(rule[0])]), None
            )
            if best is None:
                out.append(names[0])
                names = names[1:]
            else:
                names = [best[1], *names[len(best[0]) :]]
        return out

    def picture(self, glyph: str) -> Image.Image:
        """The glyph as RGBA."""
        data: bytes = self._strikes[glyph].imageData
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGBA")


def _ligatures(font: Any) -> dict[str, list[tuple[list[str], str]]]:
    """First glyph → rules (glyphs, result), longest first."""
    rules: dict[str, list[tuple[list[str], str]]] = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = getattr(table, "ExtSubTable", table)
            for first, ligatures in getattr(table, "ligatures", {}).items():
                rules.setdefault(first, []).extend(
                    ([first, *each.Component], each.LigGlyph) for each in ligatures
                )
    for found in rules.values():
        found.sort(key=lambda rule: -len(rule[0]))
    return rules


def on_white(picture: Image.Image, size: int) -> Image.Image:
    """Composite on white, pad to a square, and resize to `size` × `size` RGB."""
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
