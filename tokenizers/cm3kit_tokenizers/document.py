"""A page in its training form: CM3's minimal HTML as a flat sequence of nodes (arXiv:2201.07520, sec. 3.1).

Text is unescaped here; escaping happens where text is written back into bytes, so generated text
can never open a tag or leave an attribute value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GapKind = Literal["content", "attribute", "image"]
MOST_SIZE = 9999
"""The largest size that can be wished for a gap."""


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
    """A picture not yet encoded: the address in `src`, and the region that is missing, if any.

    `box` is (x, y, width, height) in pixels of the picture itself; `gap` is the index of the gap
    that the box belongs to.
    """

    src: str
    box: tuple[int, int, int, int] | None = None
    gap: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """A hole to fill.

    `length` is the exact number of ids, or None where the decoder finds the end itself. The missing
    region of a picture is several runs of codes, told apart by `part`. `size` is about how many ids are
    wished for, which nothing holds the decoder to.
    """

    index: int
    kind: GapKind
    length: int | None = None
    part: int = 0
    size: int | None = None


Node = Markup | Text | Image | Picture | Gap

Piece = Node | str
"""A node, or a text as a plain string, which is much cheaper to make than a `Text`."""
