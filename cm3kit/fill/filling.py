"""Fill a page's gaps: page → ids with gaps → windows → decoder → fills → the page's bytes with the gaps replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image as Pillow

from cm3kit.decoders.grammar.languages import refuse_unfit
from cm3kit.fill import remarks
from cm3kit.fill.constraints import constrained, specs_of_page
from cm3kit.fill.fillers import Ids, LoadedModel, Progress, Trace
from cm3kit.fill.layouts import put_in
from cm3kit.fill.options import GenerateOptions, chosen_style
from cm3kit.fill.sight import Sight
from cm3kit.images import encode_png, png_marks
from cm3kit.rng import stream
from cm3kit.types import Canvas, Fill, MaskSpan, Result
from cm3kit_tokenizers.document import Gap, Image, Node, Picture, Text
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.page import Fill as PageFill
from cm3kit_tokenizers.page import Page, PageGap
from cm3kit_tokenizers.patch import patchable, patched
from cm3kit_tokenizers.pictures import load_picture
from cm3kit_tokenizers.sequence import Codes


@dataclass(frozen=True, slots=True)
class FilledGap:
    """What was written into one gap: `text` (of a picture: what it is), log-probability, whether it ended, and of how
    many ids; whether it keeps to its constraint, where there is one.
    """

    index: int
    kind: str
    text: str
    logprob: float
    ended: bool
    line: int
    tokens: int = 0
    satisfied: bool | None = None


@dataclass(frozen=True, slots=True)
class Filled:
    """A filled page and what was written; `trace` tells how, where that was done in place.

    `spans` is the byte range of `html` that each gap of the page has become; `warnings` are lines on what the gaps
    were written without, on what was left out, on words that the model's corpus does not have, and on variants that
    are all equal. `answers` are the ids of each piece of each gap.
    """

    html: bytes
    gaps: list[FilledGap]
    seed: int
    index: int
    trace: Trace | None = None
    spans: tuple[tuple[int, int], ...] = ()
    warnings: tuple[str, ...] = ()
    answers: Mapping[tuple[int, int], tuple[int, ...]] = field(default_factory=dict, repr=False)


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
    """One page's gaps and one model; each variant of the page is a `PageFilling`.

    Args:
        writes: whether gaps are going to be written, so that their constraints matter.
    """

    def __init__(self, kit: LoadedModel, page: Page, options: GenerateOptions, writes: bool = True) -> None:
        if not page.gaps:
            raise PageError("the page has no gap; write <mask> where something is missing.", code="no_mask")
        self._kit, self._page, self._options = kit, page, options
        if any(gap.kind == "image" for gap in page.gaps):
            kit.needs_pictures("a picture's gap")
        self._sight = Sight(page, sees=bool(kit.vocab.image_size))
        nodes = self._sight.nodes
        self._spaced = _spaced(nodes)
        self.leads = leads(nodes)
        self._pictures: dict[int, tuple[bytes, tuple[int, int], list[int]]] = {}
        self._ids: Ids = kit.tokenizer.encode(nodes, self._codes_of)
        chat = chosen_style(kit.parts.defaults, options) == "chat"
        bare = dict.fromkeys(self.leads, "") if chat else self.leads
        self.specs = specs_of_page(page, options.constrain or (), bare) if writes else {}
        unseen = remarks.unknown(
            kit, [each.content for each in nodes if isinstance(each, Text)] if writes else ()
        )
        self._notes = (
            *(self._check() if self.specs else ()),
            *unseen,
            *remarks.unread(kit, self._ids, options),
        )

    def _check(self) -> tuple[str, ...]:
        """Refuse constraints that no answer can keep to, before anything is written; lines on what they leave out."""
        grammar, filler, notes = self._kit.grammar, self._kit.filler(self._options), list[str]()
        before: list[int] = []
        for each in self._ids:
            if isinstance(each, int):
                before.append(each)
            elif each.index in self.specs:
                room, spec = filler.room(each, self._options), self.specs[each.index]
                span = MaskSpan(each.kind, 0, room.max_tokens, room.exact, gap=each.index, constraint=spec)
                language = grammar.language(span)
                if self._options.length != "auto":
                    refuse_unfit(language, span, grammar.after(before))
                notes += language.notes
        return tuple(dict.fromkeys(notes))

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
            return constrained(filler.window(ids, self._options, stream(seed, index, window)), self.specs)

        def write(fills: Fills, results: Sequence[Result]) -> Filled:
            return self._write(fills, Trace.of(results), seed, index)

        return PageFilling(self._ids, lay_out, write)

    @property
    def ids(self) -> Ids:
        """The page's ids, gaps where they stand."""
        return list(self._ids)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines on what the model does not see of the page, or never saw before."""
        return (*self._sight.warnings, *self._notes)

    def box_of(self, gap: PageGap) -> tuple[tuple[int, int], list[bool]]:
        """Size in pixels of the picture around a missing region, and which of its codes are missing."""
        assert gap.box is not None
        size = self._pictures[gap.index][1]
        return size, missing(size, gap.box, self._kit.image.grid)

    def schedule(self) -> list[list[list[int]]]:
        """What each pass of each block will write, canvas by canvas, if the texts before are left empty."""
        filler, plans, ids = self._kit.filler(self._options), [], list(self._ids)
        while any(isinstance(each, Gap) for each in ids):
            canvas = constrained(filler.window(ids, self._options, 0), self.specs)
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
            kept = self._kept(gap, parts) if gap.index in self.specs else None
            reports.append(FilledGap(gap.index, gap.kind, text, logprob, ended, gap.line, tokens, kept))
        html, spans = self._page.splice_spans(written, image_src=self._kit.picture_src)
        warnings = (*self.warnings, *self._broken(reports))
        answers = {key: fill.ids for key, fill in fills.items()}
        return Filled(html, reports, seed, index, trace, spans, warnings, answers)

    def _kept(self, gap: PageGap, parts: Sequence[Fill]) -> bool:
        """Whether an answer keeps to its constraint; one that was cut at its longest counts as one that does not."""
        end = self._kit.filler(self._options).end(Gap(gap.index, gap.kind), self._options)
        span = MaskSpan(gap.kind, 0, 0, end=end, constraint=self.specs[gap.index])
        return parts[0].ended and self._kit.grammar.language(span).holds(parts[0].ids)

    def _broken(self, reports: Sequence[FilledGap]) -> Iterator[str]:
        for each in reports:
            if each.satisfied is False:
                kind = self.specs[each.index].kind
                yield (
                    f"line {each.line}: the answer was cut at {each.tokens} tokens, so that it does not end where its"
                    f" constraint by {kind} could; raise --max-tokens."
                )

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
        if index in self.specs:
            lead = self.specs[index].lead
            nodes = [
                Text(each.content.removeprefix(lead)) if isinstance(each, Text) else each for each in nodes
            ]
            return [node for node in nodes if node != Text("")]
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


def leads(nodes: Sequence[Node]) -> dict[int, str]:
    """For each gap what a model writes before the answer: the space that the text before it has (`sequence.healed`)."""
    found = {}
    for before, node in zip((None, *nodes), nodes, strict=False):
        if isinstance(node, Gap) and node.kind != "image":
            found[node.index] = " " if isinstance(before, Text) and before.content.endswith(" ") else ""
    return found


def _shown(node: Node) -> str:
    return "▣" if isinstance(node, Image) else getattr(node, "piece", "")
