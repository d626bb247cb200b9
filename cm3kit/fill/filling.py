"""Fill a page's gaps: page → ids with gaps → windows → decoder → fills → the page's bytes with the gaps replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image as Pillow

from cm3kit.fill.fillers import Ids, Progress, Trace
from cm3kit.fill.options import GenerateOptions
from cm3kit.fill.sight import Sight
from cm3kit.fill.tasks import put_in
from cm3kit.images import encode_png, png_marks
from cm3kit.rng import stream
from cm3kit.types import Canvas, Fill, Result
from cm3kit_tokenizers.document import Gap, Image, Node, Picture, Text
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.page import Fill as PageFill
from cm3kit_tokenizers.page import Page, PageGap
from cm3kit_tokenizers.patch import patchable, patched
from cm3kit_tokenizers.pictures import load_picture
from cm3kit_tokenizers.sequence import Codes

if TYPE_CHECKING:
    from cm3kit.fill.kit import Kit


@dataclass(frozen=True, slots=True)
class FilledGap:
    """What was written into one gap: `text` (of a picture: what it is), log-probability, whether it ended, and of how
    many ids.
    """

    index: int
    kind: str
    text: str
    logprob: float
    ended: bool
    line: int
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Filled:
    """A filled page and what was written; `trace` tells how, where that was done in place.

    `spans` is the byte range of `html` that each gap of the page has become; `warnings` are lines on what the gaps
    were written without, and on what was left out.
    """

    html: bytes
    gaps: list[FilledGap]
    seed: int
    index: int
    trace: Trace | None = None
    spans: tuple[tuple[int, int], ...] = ()
    warnings: tuple[str, ...] = ()


Fills = dict[tuple[int, int], Fill]
"""By the number of the gap on the page, and of the piece of it."""


class PageFilling:
    """A page on its way: windows of a long one are filled in turn, and a later one sees what an earlier one got.

    Args:
        lay_out: the canvas of the first gaps of a page, by the page so far and how many gaps are filled.
        write: the filled page.
    """

    def __init__(
        self,
        ids: Ids,
        lay_out: Callable[[Ids, int], Canvas],
        write: Callable[[Fills, Sequence[Result]], Filled],
    ) -> None:
        self._ids, self._lay_out, self._write = list(ids), lay_out, write
        self._count = sum(isinstance(each, Gap) for each in ids)
        self._fills: Fills = {}
        self._results: list[Result] = []

    def next_canvas(self) -> Canvas | None:
        """What is to be filled next; None once every gap is filled. ConfigError where it fits no window."""
        return self._lay_out(self._ids, len(self._fills)) if len(self._fills) < self._count else None

    def take(self, result: Result) -> None:
        """Put the result of the last canvas into the page."""
        named = {
            (span.gap, span.part): fill for span, fill in zip(result.canvas.spans, result.fills, strict=True)
        }
        self._fills |= named
        self._results.append(result)
        self._ids = put_in(self._ids, {key: fill.ids for key, fill in named.items()})

    def result(self) -> Filled:
        """The filled page, once there is no next canvas."""
        return self._write(self._fills, self._results)


class PageFiller:
    """One page's gaps and one model; each variant of the page is a `PageFilling`."""

    def __init__(self, kit: Kit, page: Page, options: GenerateOptions) -> None:
        if not page.gaps:
            raise PageError("the page has no gap; write <mask> where something is missing.", code="no_mask")
        self._kit, self._page, self._options = kit, page, options
        if any(gap.kind == "image" for gap in page.gaps):
            kit.needs_pictures("a picture's gap")
        self._sight = Sight(page, sees=bool(kit.vocab.image_size))
        nodes = self._sight.nodes
        self._spaced = _spaced(nodes)
        self._pictures: dict[int, tuple[bytes, tuple[int, int], list[int]]] = {}
        self._ids: Ids = kit.tokenizer.encode(nodes, self._codes_of)

    def fill(self, variants: int, seed: int, progress: Progress, first: int = 0) -> list[Filled]:
        """Fill the page `variants` times, those from `first` on, all window by window."""
        filler, options = self._kit.filler(self._options), self._options
        pages = [self.variant(seed, first + index) for index in range(variants)]
        count = sum(isinstance(each, Gap) for each in self._ids)
        done = 0
        while canvases := [canvas for page in pages if (canvas := page.next_canvas()) is not None]:
            gaps = len(canvases[0].spans)

            def share(step: int, total: int, done: int = done, gaps: int = gaps) -> None:
                progress(int(1000 * (done + gaps * step / max(1, total))), 1000 * count)

            for page, result in zip(pages, filler.fill(canvases, options, share), strict=True):
                page.take(result)
            done += gaps
        return [page.result() for page in pages]

    def variant(self, seed: int, index: int) -> PageFilling:
        """The filling of the page by the random numbers of one variant."""
        filler = self._kit.filler(self._options)

        def lay_out(ids: Ids, window: int) -> Canvas:
            return filler.window(ids, self._options, stream(seed, index, window))

        def write(fills: Fills, results: Sequence[Result]) -> Filled:
            return self._write(fills, Trace.of(results), seed, index)

        return PageFilling(self._ids, lay_out, write)

    def schedule(self) -> list[list[list[int]]]:
        """What each pass of each block will write, canvas by canvas, if the texts before are left empty."""
        filler, plans, ids = self._kit.filler(self._options), [], list(self._ids)
        while any(isinstance(each, Gap) for each in ids):
            canvas = filler.window(ids, self._options, 0)
            plans.append(filler.plan(canvas, self._options))
            ids = put_in(ids, {(span.gap, span.part): () for span in canvas.spans})
        return plans

    def _codes_of(self, picture: Picture) -> Codes:
        data = self._sight.read(picture.src)
        opened = load_picture(data)
        codes = self._kit.encode_picture(opened, whole=picture.box is not None)
        if picture.box is None or picture.gap is None:
            return codes, None
        patchable(data)
        self._pictures[picture.gap] = (data, opened.size, codes)
        return codes, missing(opened.size, picture.box, self._kit.image.grid)

    def _write(self, fills: Fills, trace: Trace | None, seed: int, index: int) -> Filled:
        written: dict[int, PageFill] = {}
        reports = []
        for gap in self._page.gaps:
            parts = [fills[key] for key in sorted(fills) if key[0] == gap.index]
            written[gap.index], text = self._content(gap, parts)
            logprob, ended = sum(each.logprob for each in parts), all(each.ended for each in parts)
            tokens = sum(len(each.ids) for each in parts)
            reports.append(FilledGap(gap.index, gap.kind, text, logprob, ended, gap.line, tokens))
        html, spans = self._page.splice_spans(written, image_src=self._kit.picture_src)
        return Filled(html, reports, seed, index, trace, spans, self._sight.warnings)

    def _content(self, gap: PageGap, parts: Sequence[Fill]) -> tuple[PageFill, str]:
        """A fill as the page takes it, and as a report shows it."""
        kit = self._kit
        if gap.box is not None:
            return self._patched(gap, parts), f"(region {','.join(map(str, gap.box))} of a picture)"
        if gap.kind == "image":
            codes = kit.codes(parts[0].ids)
            return encode_png(kit.pictures([codes])[0]), "(picture)"
        nodes = self._unspaced(gap.index, kit.tokenizer.decode(parts[0].ids))
        text = "".join(node.content if isinstance(node, Text) else _shown(node) for node in nodes)
        return (text if gap.kind == "attribute" else tuple(nodes)), text

    def _unspaced(self, index: int, nodes: list[Node]) -> list[Node]:
        """Drop the space that the page has already, before and after the gap."""
        before, after = self._spaced[index]
        if before and nodes and isinstance(nodes[0], Text):
            nodes[0] = Text(nodes[0].content.removeprefix(" "))
        if after and nodes and isinstance(nodes[-1], Text):
            nodes[-1] = Text(nodes[-1].content.removesuffix(" "))
        return [node for node in nodes if node != Text("")]

    def _patched(self, gap: PageGap, parts: Sequence[Fill]) -> bytes:
        """The picture with the box redrawn and every other pixel as it was."""
        assert gap.box is not None
        data, size, codes = self._pictures[gap.index]
        holes = [place for place, hole in enumerate(missing(size, gap.box, self._kit.image.grid)) if hole]
        drawn = list(codes)
        for place, code in zip(
            holes, self._kit.codes([id for part in parts for id in part.ids]), strict=True
        ):
            drawn[place] = code
        side = max(size)
        square = self._kit.pictures([drawn])[0].resize((side, side), Pillow.Resampling.LANCZOS)
        left, top = (side - size[0]) // 2, (side - size[1]) // 2
        x, y, width, height = gap.box
        patch = square.crop((left + x, top + y, left + x + width, top + y + height))
        return patched(data, patch, gap.box, png_marks())


def missing(size: tuple[int, int], box: tuple[int, int, int, int], grid: tuple[int, int]) -> list[bool]:
    """Which codes a box of a picture touches, row by row; the picture lies centred in a square."""
    rows, columns = grid
    side = max(size)
    left, top = (side - size[0]) // 2 + box[0], (side - size[1]) // 2 + box[1]
    right, bottom = left + box[2], top + box[3]
    return [
        column * side < right * columns and (column + 1) * side > left * columns
        and row * side < bottom * rows and (row + 1) * side > top * rows
        for row in range(rows) for column in range(columns)
    ]  # fmt: skip


def _spaced(nodes: Sequence[Node]) -> dict[int, tuple[bool, bool]]:
    """For each gap: whether a leading, and a trailing, space of a fill is to be dropped.

    A leading one goes where the page's text ends in a space or the gap starts an element or a value.
    """
    found = {}
    for place, node in enumerate(nodes):
        if isinstance(node, Gap) and node.kind != "image":
            before = nodes[place - 1] if place else None
            after = nodes[place + 1] if place + 1 < len(nodes) else None
            leads = not isinstance(before, Text) or before.content.endswith(" ")
            trails = not isinstance(after, Text) or after.content.startswith(" ")
            found[node.index] = (leads, trails)
    return found


def _shown(node: Node) -> str:
    return "▣" if isinstance(node, Image) else getattr(node, "piece", "")
