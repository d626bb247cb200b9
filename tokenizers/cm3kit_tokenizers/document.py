"""A page in its training form: CM3's minimal HTML as a flat sequence of nodes (arXiv:2201.07520, sec. 3.1).

Text is unescaped here; it is escaped when it is written as bytes, so generated text can never open a tag
or leave an attribute value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GapKind = Literal["content", "attribute", "image"]
MOST_SIZE = 9999
"""The largest size that can be requested for a gap."""


@dataclass(frozen=True, slots=True)
class Markup:
    """One piece of `vocab.MARKUP`, such as `<p>`, `<img` or ` src="`."""

    piece: str


@dataclass(frozen=True, slots=True)
class Text:
    """Unescaped text between tags or inside an attribute value."""

    content: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as codes of the image tokenizer, row by row."""

    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture before encoding: the address in `src`, and the missing region, if any.

    `box` is (x, y, width, height) in pixels of the picture; `gap` is the index of the box's gap.
    """

    src: str
    box: tuple[int, int, int, int] | None = None
    gap: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap to fill.

    `length` is the exact number of ids, or None if the decoder determines the end. The missing region of
    a picture is several runs of codes, distinguished by `part`. `size` is the approximate number of ids
    that is requested; the decoder may write more or fewer.
    """

    index: int
    kind: GapKind
    length: int | None = None
    part: int = 0
    size: int | None = None


Node = Markup | Text | Image | Picture | Gap

Piece = Node | str
"""A node, or a text as a plain string, which is much cheaper to create than a `Text`."""
