"""The object behind every command: a loaded model that generates and fills pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image as Pillow

from cm3kit import plugins
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.languages import Languages
from cm3kit.decoders.settings import DecoderName
from cm3kit.devices import resolve_device
from cm3kit.fill import equality, remarks, task_pages
from cm3kit.fill.answers import Answer
from cm3kit.fill.batching import Filling, Order, stream
from cm3kit.fill.causal import CausalFiller
from cm3kit.fill.constraints import constrained, specs_of_canvas
from cm3kit.fill.defaults import DIFFUSION
from cm3kit.fill.diffusion import DiffusionFiller
from cm3kit.fill.fillers import Filler, Ids, ModelContext, Progress, ScoreHow, Task, Trace
from cm3kit.fill.filling import Filled, FilledGap, PageFiller
from cm3kit.fill.finding import available, find, summary_of
from cm3kit.fill.folder import fingerprints, load_parts
from cm3kit.fill.interleaving import Interleaving
from cm3kit.fill.options import GenerateOptions, Modality, chosen_decoder
from cm3kit.fill.pages import read_bytes
from cm3kit.fill.parts import Parts, count_parameters, own_diffusion
from cm3kit.fill.scoring import Answers, PageScorer, Score, score_page
from cm3kit.fill.tasks import Generation, Result, TaskFilling, fill_together
from cm3kit.images import encode_png
from cm3kit.rng import stream as seed_of
from cm3kit.types import Canvas
from cm3kit.types import Result as DecoderResult
from cm3kit_tokenizers.document import Image, Node
from cm3kit_tokenizers.errors import ConfigError, PageError
from cm3kit_tokenizers.html.minimal import render
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.pictures import load_picture, to_data_uri
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.vq.absent import undrawn
from cm3kit_tokenizers.vq.model import to_picture
from cm3kit_tokenizers.vq.pixels import fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Filled", "FilledGap", "GenerateOptions", "Kit", "Order", "Result", "Score", "Trace", "available", "load",
]  # fmt: skip

FILLERS: Mapping[DecoderName, Callable[[ModelContext], Filler]] = {
    "cm3": CausalFiller,
    "diffusion": DiffusionFiller,
}
DEFAULT = GenerateOptions()


class Kit:
    """A model folder, ready to use."""

    def __init__(self, parts: Parts, device: str = "auto") -> None:
        self.parts = parts
        self.device = resolve_device(device)
        self.text, self.vocab = parts.text, parts.vocab
        self.image = parts.image.to(self.device)
        parts.decoder.to(self.device)
        self.tokenizer = PageTokenizer(parts.text, parts.vocab)
        # A model that was never taught markup as ids of its own would write tags as words, which come out escaped.
        without = b"<" if parts.public else b""
        known = Languages(self.vocab, self.text.encode, self.text.pieces, without)
        codes = self.image.grid[0] * self.image.grid[1]
        self.grammar = Grammar(self.vocab, codes, self.text.pieces, without, known)
        self.context = ModelContext(parts, self.tokenizer, self.grammar)
        self._fillers: dict[DecoderName, Filler] = {}

    @property
    def backbone(self) -> PreTrainedModel:
        """The decoder as a model of transformers; made when it is first asked for."""
        return self.parts.backbone

    def generate(
        self, prompt: str | bytes | Path = "", *, task: Task = "image", n: int = 1, seed: int = 0,
        options: GenerateOptions | None = None, watch: Progress = lambda done, total: None, first: int = 0,
    ) -> list[Result]:  # fmt: skip
        """`n` pictures, texts, captions, pairs or pages from one prompt.

        Args:
            prompt: words; for a caption the path or the bytes of a picture; for a pair of picture and words
                what kind of things they are of, or nothing.
            seed: sample i draws from the stream (seed, i), whatever `n` is.
            first: the number of the first sample.

        Raises:
            ConfigError: the prompt is empty or too long, an option is out of range or of another decoder.
            PictureError: the picture cannot be read.
        """
        options = options or DEFAULT
        filler, ids = self.filler(options), self._page_of(task, prompt)
        orders = (Order(prompt, task, seed, index, options) for index in range(first, first + n))
        tasks = [self._task(order, ids) for order in orders]
        fill_together(filler, tasks, options, watch)
        return equality.remarked([each.result() for each in tasks])

    def infill(
        self, page: Page, *, variants: int = 1, seed: int = 0,
        options: GenerateOptions | None = None, watch: Progress = lambda done, total: None, first: int = 0,
    ) -> list[Filled]:  # fmt: skip
        """Fill every gap of a page, `variants` times from number `first` on; all bytes outside the gaps stay.

        Raises:
            PageError: the page has no gap. PictureError: a picture with a missing region cannot be read.
            ConfigError: an option is out of range or of another decoder.
        """
        return equality.remarked(
            PageFiller(self, page, options or DEFAULT).fill(variants, seed, watch, first)
        )

    def score(
        self, page: Page, answers: Sequence[Answer | Answers] | None = None, *, pmi: bool = False,
        method: Literal["auto", "exact", "left-to-right", "bound"] = "auto", rounds: int = 64,
        options: GenerateOptions | None = None, watch: Progress = lambda done, total: None,
    ) -> list[Score]:  # fmt: skip
        """How likely each answer is in the gaps of a page, or without answers the page itself; in nats.

        An answer is words, a picture, or a mapping of these by the index of the gap; gaps that it leaves out stay open.
        It equals the log-probability that decoding reports for the same ids: the model's own, whatever guides or cuts.

        Args:
            pmi: also log p of each answer on the page without its words and pictures.
            method: of the diffusion decoder: a bound, or exactly for writing from left to right; see `ScoreHow`.
            rounds: random masks of a bound.

        Raises:
            PageError: there is no gap for an answer, or a gap and no answer. PictureError: a picture cannot be read.
            ConfigError: an answer does not fit its gap or the model's window, or an option does not go with the model.
        """
        options, how = options or DEFAULT, ScoreHow(method, rounds)
        if answers is None:
            if page.gaps:
                raise PageError(
                    "the page has gaps; give answers for them, or a page without.", code="bad_value"
                )
            return [score_page(self, page, options, how, watch)]
        given = [each if isinstance(each, Mapping) else {0: each} for each in answers]
        return PageScorer(self, page, given, options, how).score(pmi, watch) if given else []

    def sample(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Result | Filled | Exception]]:
        """Results of many orders as they are finished; those that can be are made together.

        A result is the one that `generate` or `infill` gives for the order's seed and index. An order that
        cannot be carried out gives its error, and the others go on.
        """
        return stream(self, orders)

    def filling(self, order: Order) -> Filling:
        """What an order asks of the decoder, canvas after canvas."""
        if order.page is not None:
            return PageFiller(self, order.page, order.options).variant(order.seed, order.index)
        return self._task(order, self._page_of(order.task, order.prompt))

    def _task(self, order: Order, ids: Ids) -> Generation:
        """The filling of a task's page."""
        options = order.options

        def lay_out(ids: Ids, done: int) -> Canvas:
            number = (done,) if done else ()
            seed = seed_of(order.seed, order.index, *number)
            return self._canvas(order.task, ids, options, seed, later=done > 0)

        def read(results: Sequence[DecoderResult]) -> Result:
            return self._read(order, ids, results)

        if order.task == "document" and self.parts.defaults.pictures is not None:
            return Interleaving(self, order, ids)
        return TaskFilling(ids, lay_out, read)

    def _canvas(
        self, task: Task, ids: Ids, options: GenerateOptions, seed: int, later: bool = False
    ) -> Canvas:
        """The canvas of a task, or a later one of it, with what its words may say."""
        canvas = self.filler(options).task(task, ids, options, seed)
        return constrained(canvas, specs_of_canvas(canvas, options.constrain or (), later))

    def schedule(
        self,
        prompt: str | bytes | Path | Page,
        *,
        task: Task = "image",
        options: GenerateOptions | None = None,
    ) -> list[list[list[int]]]:
        """What each pass of each block will write, of the canvas of a prompt or of those of a page.

        Raises:
            ConfigError: as `generate`, or the decoder has no schedule (`bad_value`).
        """
        options = options or DEFAULT
        if isinstance(prompt, Page):
            return PageFiller(self, prompt, options).schedule()
        filler = self.filler(options)
        return [filler.plan(self._canvas(task, self._page_of(task, prompt), options, 0), options)]

    def filler(self, options: GenerateOptions) -> Filler:
        """The decoder that the options choose; ConfigError (`bad_value`) if the model does not have it."""
        name = chosen_decoder(self.parts.defaults, options, self.parts.name)
        if name not in self._fillers:
            self._fillers[name] = FILLERS[name](self.context)
        return self._fillers[name]

    def forget_weights(self) -> None:
        """Read the weights anew when something is written next: engines have copies of them."""
        self._fillers.clear()

    def record(self, modality: Modality | None, options: GenerateOptions) -> dict[str, Any]:
        """How a result says by which decoder and settings it was made; None stands for all modalities."""
        name = chosen_decoder(self.parts.defaults, options, self.parts.name)
        return {"decoder": name, **self.filler(options).record(modality, options)}

    def pictures(self, codes: Sequence[Sequence[int]]) -> list[Pillow.Image]:
        """Decode codes (not ids) to pictures at the tokenizer's resolution."""
        pixels_BCHW = self.image.decode(torch.tensor(list(map(list, codes)), device=self.device))
        return [to_picture(each) for each in pixels_BCHW]

    def codes(self, ids: Sequence[int]) -> list[int]:
        """Image codes of ids."""
        return [each - self.vocab.image.start for each in ids]

    def encode_picture(self, picture: Pillow.Image, whole: bool = False) -> list[int]:
        """Codes of a picture, made square as the image tokenizer wants it, or padded so that all of it is `whole`."""
        config = self.image.config.model_copy(update={"fit": "pad"} if whole else {})
        pixels_BCHW = fit(picture, config)[None].to(self.device)
        codes: list[int] = self.image.encode(pixels_BCHW)[0].tolist()
        return codes

    def info(self) -> dict[str, Any]:
        """Name, sizes, hashes and card."""
        parts = self.parts
        path = parts.folder / "README.md"
        card = path.read_text(encoding="utf-8") if path.is_file() else ""
        parameters = {
            "decoder": sum(each.numel() for each in parts.weights.parameters()),
            "image": sum(each.numel() for each in self.image.parameters()),
        }
        if own_diffusion(parts):
            parameters[DIFFUSION] = count_parameters(parts.folder / DIFFUSION)
        return {
            "name": parts.name,
            "summary": summary_of(card),
            "folder": str(parts.folder),
            "decoders": ", ".join(parts.defaults.decoders),
            "parameters": parameters,
            "ids": {"all": len(self.vocab), "text": self.vocab.text_size, "image": self.vocab.image_size},
            "picture": {
                "pixels": self.image.config.resolution,
                "codes": f"{self.image.grid[0]}x{self.image.grid[1]}",
            },
            "window": parts.defaults.window,
            "device": str(self.device),
            "dtype": str(parts.weights.dtype).removeprefix("torch."),
            "sha256": fingerprints(parts.folder),
            "card": card,
        }

    def _page_of(self, task: Task, prompt: str | bytes | Path) -> Ids:
        """The page with gaps that a task stands for; that of a document has none."""
        if task != "text" and task != "document":
            self.needs_pictures(f"task {task}", drawn=task != "caption")
        elif task == "document" and self.vocab.image_size and not self.image.draws:
            raise undrawn("task document")
        if task == "caption":
            return self.tokenizer.encode(
                task_pages.caption_nodes(self.encode_picture(load_picture(_bytes(prompt))))
            )
        nodes = {
            "image": task_pages.image_nodes, "text": task_pages.paragraph_nodes, "document": task_pages.title_nodes,
            "pair": task_pages.pair_nodes,
        }[task]  # fmt: skip
        return self.tokenizer.encode(nodes(_words(prompt, empty=task == "pair")))

    def _read(self, order: Order, ids: Ids, results: Sequence[DecoderResult]) -> Result:
        """What was written, as the task wants it."""
        image = text = html = None
        codes: tuple[int, ...] = ()
        fills = [fill for result in results for fill in result.fills]
        for span, fill in zip((span for each in results for span in each.canvas.spans), fills, strict=True):
            if span.kind == "image":
                codes = tuple(self.codes(fill.ids))
                image = self.pictures([codes])[0]
            elif span.kind == "document":
                html = self.page([*(each for each in ids if isinstance(each, int)), *fill.ids])
            else:
                text = "".join(map(_plain, self.tokenizer.decode(fill.ids)))
                text = text if span.constraint else text.strip()
        kind: Literal["image", "text", "pair", "page"] = "page" if html else "image" if image else "text"
        logprob, ended = sum(each.logprob for each in fills), all(each.ended for each in fills)
        kind, said = "pair" if order.task == "pair" else kind, remarks.unknown(self, [order.prompt])
        trace = Trace.of(results)
        return Result(kind, image, text, html, order.seed, order.index, logprob, ended, trace, codes, said)

    def needs_pictures(self, what: str, drawn: bool = True) -> None:
        """Refuse what needs an image tokenizer where there is none, or none that draws; ConfigError (`bad_value`)."""
        if not self.vocab.image_size:
            raise ConfigError(
                f"{what} needs picture codes, and model {self.parts.name!r} writes words alone; use --task text, or"
                " another model.",
                code="bad_value",
            )
        if drawn and not self.image.draws:
            raise undrawn(what)

    def page(self, ids: Sequence[int]) -> str:
        """Ids of a document as a whole HTML page, pictures inside it."""
        return f'<!DOCTYPE html>\n<meta charset="utf-8">\n{render(self.tokenizer.decode(ids), self.picture_src)}\n'

    def picture_src(self, image: Image) -> str:
        """A picture of codes as a data: address."""
        return to_data_uri(encode_png(self.pictures([image.codes])[0]))


def load(name: str | Path | None = None, device: str = "auto") -> Kit:
    """Load a model by name, by folder, or the default one (`CM3KIT_MODEL`, else `pictures`).

    Raises:
        ModelError: there is no such model, or its files are damaged.
        ConfigError: the device is not there, or a plug-in cannot be loaded.
    """
    plugins.load()
    return Kit(load_parts(find(name)), device)


def _words(prompt: str | bytes | Path, empty: bool) -> str:
    words = " ".join(str(prompt).split()) if isinstance(prompt, str) else ""
    if not words and not empty:
        raise ConfigError("the prompt is empty; give some words.", code="bad_value")
    return words


def _bytes(prompt: str | bytes | Path) -> bytes:
    return prompt if isinstance(prompt, bytes) else read_bytes(Path(prompt))


def _plain(node: Node) -> str:
    return node.content if hasattr(node, "content") else ""
