"""Drawings by name: icon sets in Iconify's JSON, and SVG files, rendered with transparency.

A set is the folder of an npm package `@iconify-json/…`: `icons.json` holds the body of an SVG per name, with `left`,
`top`, `width` and `height` that default to those of the set, and `chars.json`, where there is one, names by code points
(https://iconify.design/docs/types/iconify-json.html).
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from cm3kit_tokenizers.errors import DataError
from cm3kit_tokenizers.installing import install

Points = tuple[int, ...]
VARIATION = 0xFE0F


def plain(points: Points) -> Points:
    """Code points without variation selectors, which sets use inconsistently."""
    return tuple(point for point in points if point != VARIATION)


def slug(name: str) -> str:
    """A name as icon sets write it: `red apple` → `red-apple`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("'", "").replace("’", "")).strip("-")


class IconSet:
    """The drawings of one icon set.

    Raises:
        DataError: the folder holds no icon set (`no_file`), or a malformed one (`bad_data`).
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "icons.json"
        if not path.is_file():
            raise DataError(
                f"{folder} holds no icons.json; it comes from an npm package @iconify-json/…", code="no_file"
            )
        try:
            self._set: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self._icons: dict[str, Any] = self._set["icons"]
            self._aliases: dict[str, Any] = self._set.get("aliases", {})
            chars = folder / "chars.json"
            by_hex = json.loads(chars.read_text(encoding="utf-8")) if chars.is_file() else {}
            self._chars = {
                plain(tuple(int(code, 16) for code in key.split("-"))): name for key, name in by_hex.items()
            }
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not an icon set: {error}.", code="bad_data") from error
        self._squashed = {name.replace("-", ""): name for name in (*self._aliases, *self._icons)}

    def find(self, points: Points, *names: str) -> str | None:
        """The icon of a character sequence, else that of the first existing name."""
        for found in (self._chars.get(plain(points)), *map(slug, names)):
            if found and (found in self._icons or found in self._aliases):
                return found
        squashed = (self._squashed.get(slug(name).replace("-", "")) for name in names)
        return next(filter(None, squashed), None)

    def svg(self, icon: str) -> str:
        """The SVG of an icon from `find`."""
        changes: dict[str, Any] = {}
        while icon not in self._icons:
            changes = {**self._aliases[icon], **changes}
            icon = self._aliases[icon]["parent"]
        body = {**self._icons[icon], **{key: value for key, value in changes.items() if key != "parent"}}
        left, top, width, height = (
            body.get(key, self._set.get(key, default)) for key, default in BOX.items()
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{body["body"]}</svg>'
        )


BOX = {"left": 0, "top": 0, "width": 16, "height": 16}


def render(svg: str, size: int) -> Image.Image:
    """Render an SVG centred on a transparent square, RGBA.

    Raises:
        DataError: resvg-py is missing (`missing_extra`), or the SVG cannot be drawn (`bad_picture`).
    """
    try:
        import resvg_py
    except ImportError as error:
        raise DataError(
            f"drawing SVG needs resvg-py; install it with: {install('data')}", code="missing_extra"
        ) from error
    try:
        drawn = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, dpi=96.0)
        return squared(Image.open(io.BytesIO(bytes(drawn))), size)
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(
            f"an SVG cannot be drawn: {str(error).splitlines()[0]}", code="bad_picture"
        ) from error


def squared(picture: Image.Image, size: int) -> Image.Image:
    """A picture scaled and centred on a transparent square, RGBA."""
    rgba = picture.convert("RGBA")
    scale = size / max(rgba.size)
    small = rgba.resize(
        (max(1, round(rgba.width * scale)), max(1, round(rgba.height * scale))), Image.Resampling.LANCZOS
    )
    out = Image.new("RGBA", (size, size))
    out.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return out
