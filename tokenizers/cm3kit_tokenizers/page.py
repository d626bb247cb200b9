"""A page: its source bytes, and the gaps in it. Filling a gap replaces that byte range and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cm3kit_tokenizers.document import MOST_SIZE, Image, Node
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.html.encoding import codec_of, refuse_wide
from cm3kit_tokenizers.html.escape import encode, escape_attribute, escape_text
from cm3kit_tokenizers.html.gaps import (
    Box,
    PageGap,
    in_order,
    without_gaps,
    written_gaps,
)
from cm3kit_tokenizers.html.minimal import keep_all, minimal_nodes, render
from cm3kit_tokenizers.html.nesting import fit
from cm3kit_tokenizers.html.point import picture_gap, words_gap
from cm3kit_tokenizers.html.select import region_gap, selected_gaps
from cm3kit_tokenizers.html.spans import parse_tree, view
from cm3kit_tokenizers.html.walk import mark
from cm3kit_tokenizers.pictures import picture_size, resolve_src, to_data_uri

__all__ = ["Box", "Fill", "Page", "PageGap"]

Fill = str | bytes | tuple[Node, ...]

_UNFINISHED_REFERENCE = re.compile(rb"&#?[0-9A-Za-z]*\Z")
_CONTINUES = re.compile(r"[0-9A-Za-z#;=]")
_OPEN_PRE = re.compile(rb"<(?:pre|listing)(?:\s[^<>]*)?>\Z", re.I)


@dataclass(frozen=True, slots=True)
class Page:
    """Source bytes and the gaps in them, in source order.

    Args:
        data: the page as it was read.
        base: the folder that relative picture addresses start from.
        codec: Python's name of the page's encoding.
        gaps: what is to be filled.
    """

    data: bytes = field(repr=False)
    base: Path | None
    codec: str
    gaps: tuple[PageGap, ...]

    @classmethod
    def parse(cls, data: bytes, base: Path | None = None) -> Page:
        """Read a page and the `<mask>`s written in it.

        Raises:
            PageError: empty_file, page_too_large (16 MiB), page_too_deep (500 elements), not_html, gap_place.
        """
        text = view(data)
        refuse_wide(data)
        tree = parse_tree(text)
        return cls(data, base, codec_of(data, tree), tuple(written_gaps(text, tree)))

    def select(self, css: str) -> Page:
        """This page with a further gap for every match of a selector.

        `p.intro` empties those elements, `img.hero@alt` an attribute (inserted where it is missing),
        `img` the whole picture.

        Raises:
            PageError: bad_selector, gap_overlap, gap_place.
        """
        text = view(self.data)
        found = selected_gaps(text, without_gaps(text, self.gaps), css, self.codec)
        return replace(self, gaps=tuple(in_order(text, [*self.gaps, *found])))

    def region(self, name: str, box: Box) -> Page:
        """This page with a gap for the box (x, y, width, height) of the picture whose `src` ends with `name`.

        Raises:
            PageError: bad_selector, bad_box, gap_overlap.
            PictureError: where the picture itself cannot be read.
        """
        text = view(self.data)
        gap, src = region_gap(text, without_gaps(text, self.gaps), name, box, self.codec)
        if self.base is not None or src.startswith("data:"):
            self._check_box(name, src, box)
        return replace(self, gaps=tuple(in_order(text, [*self.gaps, gap])))

    def words(self, start: int, end: int) -> Page:
        """This page with a gap for the text at bytes `start:end`, widened to whole elements where it cuts through some.

        Raises:
            PageError: gap_place where no words can stand or an element has no end, gap_overlap.
        """
        text = view(self.data)
        gap = words_gap(text, without_gaps(text, self.gaps), start, end)
        return replace(self, gaps=tuple(in_order(text, [*self.gaps, gap])))

    def picture(self, offset: int, box: Box | None = None) -> Page:
        """This page with a gap for the picture whose tag starts at byte `offset`, or for a box (x, y, w, h) of it.

        Raises:
            PageError: bad_selector where no picture starts, bad_box, gap_overlap.
            PictureError: where there is a box, and the picture itself cannot be read.
        """
        text = view(self.data)
        gap, src = picture_gap(text, without_gaps(text, self.gaps), offset, box, self.codec)
        if box is not None:
            self._check_box(src, src, box)
        return replace(self, gaps=tuple(in_order(text, [*self.gaps, gap])))

    def sized(self, sizes: Mapping[int, int]) -> Page:
        """This page with the sizes that are wished for its gaps, by their index, in tokens: as `<mask size=12>`.

        Raises:
            PageError: bad_value for a size that is none, gap_place for a picture's, which has its own.
            KeyError: for an index that is no gap's.
        """
        gaps = list(self.gaps)
        for index, size in sizes.items():
            if not 0 <= index < len(gaps):
                raise KeyError(f"no gap {index}; the page has {len(gaps)}")
            if gaps[index].kind == "image":
                raise PageError(f"Gap {index} has the size of its picture; give none.", code="gap_place")
            if not 1 <= size <= MOST_SIZE:
                raise PageError(
                    f"Gap {index} of {size} tokens; give a size from 1 to {MOST_SIZE:,}.", code="bad_value"
                )
            gaps[index] = replace(gaps[index], size=size)
        return replace(self, gaps=tuple(gaps))

    def _check_box(self, name: str, src: str, box: Box) -> None:
        """Refuse a box that leaves the picture (`bad_box`)."""
        width, height = picture_size(resolve_src(src, self.base))
        if box[0] + box[2] > width or box[1] + box[3] > height:
            raise PageError(
                f"The box {','.join(map(str, box))} leaves {name[:60]!r}, which has {width}x{height} pixels.",
                code="bad_box",
            )

    def nodes(self, usable: Callable[[str], bool] = keep_all) -> list[Node]:
        """The page as CM3's minimal HTML, gaps where they stand.

        Args:
            usable: says of a picture's address whether its `src` is kept.

        Raises:
            PageError: gap_place for a gap that minimal HTML has no room for.
        """
        parts: list[str] = []
        at = 0
        for gap in self.gaps:
            kept = self._decode(gap.start, gap.end) if gap.box else ""
            parts += [self._decode(at, gap.start), gap.before, mark(gap.index), kept, gap.after]
            at = gap.end
        parts.append(self._decode(at, len(self.data)))
        return minimal_nodes(parse_tree("".join(parts)), self.gaps, usable)

    def _decode(self, start: int, end: int) -> str:
        text = self.data[start:end].decode(self.codec, "replace")
        return text.removeprefix("\ufeff") if start == 0 else text

    def splice(self, fills: Mapping[int, Fill], image_src: Callable[[Image], str] | None = None) -> bytes:
        """The page's bytes with some gaps filled; every other byte is the source's.

        Args:
            fills: by gap index: unescaped text; nodes of minimal HTML for a content gap; for a picture its
                new address, or the bytes of a PNG, written as a data: address.
            image_src: gives the address of an `Image` among the nodes.

        Raises:
            KeyError: for an index that is no gap's.
        """
        return self.splice_spans(fills, image_src)[0]

    def splice_spans(
        self, fills: Mapping[int, Fill], image_src: Callable[[Image], str] | None = None
    ) -> tuple[bytes, tuple[tuple[int, int], ...]]:
        """As `splice`, with the byte range of the result that each gap has become; a gap left alone keeps its own."""
        unknown = set(fills) - {gap.index for gap in self.gaps}
        if unknown:
            raise KeyError(f"no gap {min(unknown)}; the page has {len(self.gaps)}")
        parts: list[bytes] = []
        spans: list[tuple[int, int]] = []
        at = longer = 0
        for gap in self.gaps:
            written = self.data[gap.start : gap.end]
            if gap.index in fills:
                written = self._written(gap, fills[gap.index], image_src)
            spans.append((gap.start + longer, gap.start + longer + len(written)))
            longer += len(written) - (gap.end - gap.start)
            parts += [self.data[at : gap.start], written]
            at = gap.end
        return b"".join((*parts, self.data[at:])), tuple(spans)

    def _written(self, gap: PageGap, fill: Fill, image_src: Callable[[Image], str] | None) -> bytes:
        """A fill as bytes, escaped for its place."""
        if isinstance(fill, bytes):
            if gap.kind != "image":
                raise TypeError(f"gap {gap.index} is no picture: give text or nodes, not bytes")
            fill = to_data_uri(fill)
        if isinstance(fill, tuple):
            if gap.kind != "content":
                raise TypeError(f"gap {gap.index} holds no markup: give text, not nodes")
            text = render(fit(fill, gap.inside), image_src)
        else:
            text = escape_text(fill) if gap.kind == "content" else escape_attribute(fill)
        before = self.data[max(0, gap.start - 200) : gap.start]
        if _UNFINISHED_REFERENCE.search(before) and _CONTINUES.match(text):
            text = f"&#{ord(text[0])};{text[1:]}"
        # A parser drops the first line break inside <pre>.
        if text.startswith("\n") and gap.kind == "content" and _OPEN_PRE.search(before):
            text = "\n" + text
        return encode(gap.before + text + gap.after, self.codec)
