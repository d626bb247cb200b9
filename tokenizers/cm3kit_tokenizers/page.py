"""A page: its source bytes and its gaps. Filling a gap replaces only its byte range."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from cm3kit_tokenizers.document import MOST_SIZE, Image, Node, Text
from cm3kit_tokenizers.errors import PageError, PictureError
from cm3kit_tokenizers.html.addresses import Unopened, base_of, plain_addresses, settle
from cm3kit_tokenizers.html.covers import covers_of
from cm3kit_tokenizers.html.encoding import ERRORS, codec_of, refuse_shifting, refuse_wide
from cm3kit_tokenizers.html.escape import encode, escape_attribute
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
from cm3kit_tokenizers.html.spans import Span, parse_tree, view
from cm3kit_tokenizers.html.walk import MARK, mark
from cm3kit_tokenizers.patch import patchable
from cm3kit_tokenizers.pictures import picture_size, resolve_src, to_data_uri
from cm3kit_tokenizers.site import Site

__all__ = ["Box", "Fill", "Page", "PageGap"]

Fill = str | bytes | tuple[Node, ...]

_UNFINISHED_REFERENCE = re.compile(rb"&#?[0-9A-Za-z]*\Z")
_CONTINUES = re.compile(r"[0-9A-Za-z#;=]")
_OPEN_PRE = re.compile(rb"<(?:pre|listing)(?:\s[^<>]*)?>\Z", re.I)


@dataclass(frozen=True, slots=True)
class Page:
    """Source bytes and the gaps in them, in source order.

    Args:
        data: the source bytes.
        base: the folder to which picture addresses are relative.
        codec: Python's name of the page's encoding.
        gaps: the gaps to fill.
        root: the folder of the site, to which addresses that begin with `/` are relative and which pictures must not
            leave; by default the page's own.
        notes: matches that were skipped while selecting gaps, one line each.
        covers: byte ranges that would hide a generated picture and are removed with it (see `uncovered`).
    """

    data: bytes = field(repr=False)
    base: Path | None
    codec: str
    gaps: tuple[PageGap, ...]
    root: Path | None = None
    notes: tuple[str, ...] = ()
    covers: tuple[Span, ...] = ()

    @classmethod
    def parse(cls, data: bytes, base: Path | None = None, root: Path | None = None) -> Page:
        """Read a page and the `<mask>`s written in it.

        Args:
            base: the page's folder, by default `root`. root: see `Page`.

        Raises:
            PictureError: picture_outside if `base` is not below `root`.
            PageError: empty_file, page_too_large (16 MiB), page_too_deep (500 elements), not_html, gap_place.
        """
        text = view(data)
        refuse_wide(data)
        codec = codec_of(data)
        refuse_shifting(codec)
        gaps = tuple(_decoded(gap, codec) for gap in written_gaps(text, parse_tree(text)))
        page = cls(data, base or root, codec, gaps, root)
        page.site()
        return page

    def site(self) -> Callable[[str], bytes]:
        """Opens the page's pictures by their addresses; only `data:` URLs if the page has no folder."""
        if self.base is None:
            return partial(resolve_src, base=None)
        return Site(self.base, self.root, links=self.root is not None)

    def select(self, css: str) -> Page:
        """This page with a further gap for every match of a selector.

        `p.intro` selects the content of those elements, `img.hero@alt` an attribute (inserted if missing),
        `img` the whole picture.

        Raises:
            PageError: bad_selector, gap_overlap, gap_place.
        """
        text = view(self.data)
        found, notes = selected_gaps(text, without_gaps(text, self.gaps), css, self.codec)
        return replace(self, gaps=tuple(in_order(text, [*self.gaps, *found])), notes=(*self.notes, *notes))

    def region(self, name: str, box: Box) -> Page:
        """This page with a gap for the box (x, y, width, height) of the picture whose `src` ends with `name`.

        Raises:
            PageError: bad_selector, bad_box, gap_overlap.
            PictureError: if the picture cannot be read.
        """
        text = view(self.data)
        gap, src = region_gap(text, without_gaps(text, self.gaps), name, box, self.codec)
        if self.base is not None or src.startswith("data:"):
            self._check_box(name, src, box)
        return replace(self, gaps=tuple(in_order(text, [*self.gaps, gap])))

    def words(self, start: int, end: int) -> Page:
        """This page with a gap for the text at bytes `start:end`, extended to elements that it cuts through.

        Raises:
            PageError: gap_place if there can be no text or an element has no end, gap_overlap.
        """
        text = view(self.data)
        gap = words_gap(text, without_gaps(text, self.gaps), start, end)
        return replace(self, gaps=tuple(in_order(text, [*self.gaps, gap])))

    def picture(self, offset: int, box: Box | None = None) -> Page:
        """This page with a gap for the picture whose tag starts at byte `offset`, or for a box (x, y, w, h) of it.

        Raises:
            PageError: bad_selector if no picture starts there, bad_box, gap_overlap.
            PictureError: if there is a box and the picture cannot be read.
        """
        text = view(self.data)
        gap, src = picture_gap(text, without_gaps(text, self.gaps), offset, box, self.codec)
        if box is not None:
            self._check_box(src, src, box)
        return replace(self, gaps=tuple(in_order(text, [*self.gaps, gap])))

    def sized(self, sizes: Mapping[int, int]) -> Page:
        """This page with requested sizes of gaps, by index, in tokens: as `<mask size=12>`.

        Raises:
            PageError: bad_value for an invalid size, gap_place for a picture, whose size is fixed.
            KeyError: for an index without a gap.
        """
        gaps = list(self.gaps)
        for index, size in sizes.items():
            if not 0 <= index < len(gaps):
                raise KeyError(f"no gap {index}; the page has {len(gaps)}")
            if gaps[index].kind == "image":
                raise PageError(f"Gap {index} has the size of its picture; omit the size.", code="gap_place")
            if not 1 <= size <= MOST_SIZE:
                raise PageError(
                    f"Gap {index} of {size} tokens; give a size from 1 to {MOST_SIZE:,}.", code="bad_value"
                )
            gaps[index] = replace(gaps[index], size=size)
        return replace(self, gaps=tuple(gaps))

    def _check_box(self, name: str, src: str, box: Box) -> None:
        """Refuse a box that is not inside the picture (`bad_box`)."""
        data = self._opened(src)
        width, height = picture_size(data)
        patchable(data)
        if box[0] + box[2] > width or box[1] + box[3] > height:
            raise PageError(
                f"The box {','.join(map(str, box))} leaves {name[:60]!r}, which has {width}x{height} pixels.",
                code="bad_box",
            )

    def _opened(self, src: str) -> bytes:
        """The picture of a `src`, by its first existing address; PictureError of the last address otherwise."""
        site, text = self.site(), view(self.data)
        *tried, last = plain_addresses(src, base_of(parse_tree(text, False))) or (src,)
        for address in tried:
            with suppress(PictureError):
                return site(address)
        return site(last)

    def uncovered(self) -> Page:
        """This page without the attributes that hide generated pictures: `srcset`, lazy addresses and `<source>`s.

        Browsers show those instead of `src`, to which a generated picture is written.
        """
        text = view(self.data)
        spans = [span for each in covers_of(text, self._pointed(text), self.gaps) for span in each.spans]
        return replace(self, covers=tuple(sorted(set(spans))))

    def covered(self) -> tuple[str, ...]:
        """A line per generated picture that browsers would not show, since other attributes override `src`."""
        if self.covers:
            return ()
        text = view(self.data)
        return tuple(
            f"Line {each.gap.line}: the picture is written to src, but browsers show that of"
            f" {' and '.join(each.names)}; remove it, or give --uncover."
            for each in covers_of(text, self._pointed(text), self.gaps)
        )

    def _pointed(self, text: str) -> Any:
        """The tree with written gaps as text."""
        return without_gaps(text, self.gaps)

    def nodes(
        self, usable: Callable[[str], bool] = keep_all, unopened: list[Unopened] | None = None
    ) -> list[Node]:
        """The page as CM3's minimal HTML, with its gaps in place.

        Args:
            usable: whether a picture's address is used; the first such address of a picture becomes its `src`
                (see `html.addresses`).
            unopened: called with the pictures without a used address.

        Raises:
            PageError: gap_place for a gap that minimal HTML drops.
        """
        parts: list[str] = []
        at = 0
        for gap in self.gaps:
            kept = self._decode(gap.start, gap.end) if gap.box else ""
            parts += [self._decode(at, gap.start), gap.before, mark(gap.index), kept, gap.after]
            at = gap.end
        parts.append(self._decode(at, len(self.data)))
        tree = parse_tree("".join(parts))
        lost = settle(tree, usable, MARK)
        if unopened is not None:
            unopened += lost
        return minimal_nodes(tree, self.gaps, keep_all)

    def _decode(self, start: int, end: int) -> str:
        text = self.data[start:end].decode(self.codec, ERRORS)
        return text.removeprefix("\ufeff") if start == 0 else text

    def splice(self, fills: Mapping[int, Fill], image_src: Callable[[Image], str] | None = None) -> bytes:
        """The page's bytes with some gaps filled; all other bytes are unchanged.

        Args:
            fills: by gap index: unescaped text; nodes of minimal HTML for a content gap; for a picture its
                new address, or the bytes of a PNG, written as a data: URL.
            image_src: returns the address of an `Image` among the nodes.

        Raises:
            KeyError: for an index without a gap.
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
        at = size = 0
        for start, end, gap in sorted(
            [*((gap.start, gap.end, gap) for gap in self.gaps), *((*span, None) for span in self.covers)],
            key=lambda each: each[:2],
        ):
            written = b"" if gap is None else self.data[start:end]
            if gap is not None and gap.index in fills:
                written = self._written(gap, fills[gap.index], image_src)
            parts += [self.data[at:start], written]
            size += start - at + len(written)
            if gap is not None:
                spans.append((size - len(written), size))
            at = end
        return b"".join((*parts, self.data[at:])), tuple(spans)

    def _written(self, gap: PageGap, fill: Fill, image_src: Callable[[Image], str] | None) -> bytes:
        """A fill as bytes, escaped for its place."""
        if isinstance(fill, bytes):
            if gap.kind != "image":
                raise TypeError(f"gap {gap.index} is no picture: give text or nodes, not bytes")
            fill = to_data_uri(fill)
        if isinstance(fill, str) and gap.kind == "content":
            fill = (Text(fill),)
        if isinstance(fill, tuple):
            if gap.kind != "content":
                raise TypeError(f"gap {gap.index} holds no markup: give text, not nodes")
            text = render(fit(fill, gap.inside), image_src)
        else:
            text = escape_attribute(fill)
        before = self.data[max(0, gap.start - 200) : gap.start]
        if _UNFINISHED_REFERENCE.search(before) and _CONTINUES.match(text):
            text = f"&#{ord(text[0])};{text[1:]}"
        # A parser drops the first line break inside <pre>.
        if text.startswith("\n") and gap.kind == "content" and _OPEN_PRE.search(before):
            text = "\n" + text
        return encode(gap.before + text + gap.after, self.codec)


def _decoded(gap: PageGap, codec: str) -> PageGap:
    """The gap with its constraint as a reader reads it."""
    if gap.constraint is None:
        return gap
    kind, value = (html.unescape(part.encode("latin-1").decode(codec, ERRORS)) for part in gap.constraint)
    return replace(gap, constraint=(kind, value))
