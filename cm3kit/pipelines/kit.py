"""The object behind every command: a loaded model that generates and fills pages."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image as Pillow

from cm3kit.decoders.grammar import Grammar
from cm3kit.decoders.settings import DecoderName
from cm3kit.pipelines import layout
from cm3kit.pipelines.batching import Order, flow
from cm3kit.pipelines.filling import Filled, FilledGap, PageFiller
from cm3kit.pipelines.folder import (
    DIFFUSION,
    Parts,
    available,
    count_parameters,
    find,
    fingerprints,
    load_parts,
    own_diffusion,
)
from cm3kit.pipelines.in_place import Boards
from cm3kit.pipelines.options import GenerateOptions, Modality, chosen_decoder
from cm3kit.pipelines.outputs import encode_png
from cm3kit.pipelines.pages import read_bytes
from cm3kit.pipelines.rows import Rows
from cm3kit.pipelines.ways import Answer, Ground, Ids, Task, Trace, Watch, Way
from cm3kit.rng import stream
from cm3kit_tokenizers.document import Image, Node
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.html.minimal import render
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.pictures import load_picture, to_data_uri
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.vq.model import to_picture

__all__ = ["Filled", "FilledGap", "GenerateOptions", "Kit", "Order", "Result", "Trace", "available", "load"]

WAYS: Mapping[DecoderName, type[Rows] | type[Boards]] = {"cm3": Rows, "diffusion": Boards}
DEFAULT = GenerateOptions()


@dataclass(frozen=True, slots=True)
class Result:
    """One sample: a picture, words, a picture with its words, or a page. `seed` and `index` make it again.

    `trace` tells how it was written, where that was done in place; `codes` are those of the picture.
    """

    kind: Literal["image", "text", "pair", "page"]
    image: Pillow.Image | None
    text: str | None
    html: str | None
    seed: int
    index: int
    logprob: float
    ended: bool
    trace: Trace | None = None
    codes: tuple[int, ...] = ()


class Kit:
    """A model folder, ready to use."""

    def __init__(self, parts: Parts, device: str = "auto") -> None:
        self.parts = parts
        self.device = resolve_device(device)
        self.text, self.vocab = parts.text, parts.vocab
        self.image = parts.image.to(self.device)
        self.backbone = parts.backbone.to(self.device)
        self.tokenizer = PageTokenizer(parts.text, parts.vocab)
        # A model that was never taught markup as ids of its own would write tags as words, which come out escaped.
        without = b"<" if parts.public else b""
        grammar = Grammar(self.vocab, self.image.grid[0] * self.image.grid[1], self.text.pieces, without)
        self._ground = Ground(parts, self.tokenizer, grammar)
        self._ways: dict[DecoderName, Way[Any]] = {}

    def generate(
        self, prompt: str | bytes | Path = "", *, task: Task = "image", n: int = 1, seed: int = 0,
        options: GenerateOptions | None = None, watch: Watch = lambda done, total: None, first: int = 0,
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
        way, ids = self.way(options), self._page_of(task, prompt)
        numbers = range(first, first + n)
        asked = [way.task(task, ids, options, stream(seed, index)) for index in numbers]
        answers = way.fill(asked, options, watch) if asked else []
        return [
            self._read(task, ids, answer, seed, index) for index, answer in zip(numbers, answers, strict=True)
        ]

    def infill(
        self, page: Page, *, variants: int = 1, seed: int = 0,
        options: GenerateOptions | None = None, watch: Watch = lambda done, total: None, first: int = 0,
    ) -> list[Filled]:  # fmt: skip
        """Fill every gap of a page, `variants` times from number `first` on; all bytes outside the gaps stay.

        Raises:
            PageError: the page has no gap. PictureError: a picture with a missing region cannot be read.
            ConfigError: an option is out of range or of another decoder.
        """
        return PageFiller(self, page, options or DEFAULT).fill(variants, seed, watch, first)

    def sample(self, orders: Iterable[Order]) -> Iterator[tuple[Order, Result | Filled | Exception]]:
        """Results of many orders as they are finished; those that can be are made together.

        A result is the one that `generate` or `infill` gives for the order's seed and index. An order that
        cannot be carried out gives its error, and the others go on.
        """
        return flow(self, orders)

    def writing(self, order: Order) -> Generator[Any, Answer, Result | Filled]:
        """Lay out what an order asks of the decoder, hear the answers, and give the result."""
        if order.page is not None:
            return (yield from PageFiller(self, order.page, order.options).variant(order.seed, order.index))
        ids = self._page_of(order.task, order.prompt)
        way, seed = self.way(order.options), stream(order.seed, order.index)
        answer = yield way.task(order.task, ids, order.options, seed)
        return self._read(order.task, ids, answer, order.seed, order.index)

    def schedule(
        self,
        prompt: str | bytes | Path | Page,
        *,
        task: Task = "image",
        options: GenerateOptions | None = None,
    ) -> list[list[list[int]]]:
        """What each pass of each block will write, of the board of a prompt or of those of a page.

        Raises:
            ConfigError: as `generate`, or the decoder has no schedule (`bad_value`).
        """
        options = options or DEFAULT
        if isinstance(prompt, Page):
            return PageFiller(self, prompt, options).schedule()
        way = self.way(options)
        return [way.plan(way.task(task, self._page_of(task, prompt), options, 0), options)]

    def way(self, options: GenerateOptions) -> Way[Any]:
        """The decoder that the options choose; ConfigError (`bad_value`) if the model does not have it."""
        name = chosen_decoder(self.parts.defaults, options, self.parts.name)
        if name not in self._ways:
            self._ways[name] = WAYS[name](self._ground)
        return self._ways[name]

    def record(self, modality: Modality | None, options: GenerateOptions) -> dict[str, Any]:
        """How a result says by which decoder and settings it was made; None stands for all modalities."""
        name = chosen_decoder(self.parts.defaults, options, self.parts.name)
        return {"decoder": name, **self.way(options).record(modality, options)}

    def pictures(self, codes: Sequence[Sequence[int]]) -> list[Pillow.Image]:
        """Decode codes (not ids) to pictures at the tokenizer's resolution."""
        pixels_BCHW = self.image.decode(torch.tensor(list(map(list, codes)), device=self.device))
        return [to_picture(each) for each in pixels_BCHW]

    def codes(self, ids: Sequence[int]) -> list[int]:
        """Image codes of ids."""
        return [each - self.vocab.image.start for each in ids]

    def encode_picture(self, picture: Pillow.Image) -> list[int]:
        """Codes of a picture, padded to a square and resized."""
        pixels_BCHW = self.image.pixels([picture]).to(self.device)
        codes: list[int] = self.image.encode(pixels_BCHW)[0].tolist()
        return codes

    def info(self) -> dict[str, Any]:
        """Name, sizes, hashes and card."""
        parts = self.parts
        card = parts.folder / "README.md"
        parameters = {
            "decoder": sum(each.numel() for each in self.backbone.parameters()),
            "image": sum(each.numel() for each in self.image.parameters()),
        }
        if own_diffusion(parts):
            parameters[DIFFUSION] = count_parameters(parts.folder / DIFFUSION)
        return {
            "name": parts.name,
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
            "dtype": "float32",
            "sha256": fingerprints(parts.folder),
            "card": card.read_text(encoding="utf-8") if card.is_file() else "",
        }

    def _page_of(self, task: Task, prompt: str | bytes | Path) -> Ids:
        """The page with gaps that a task stands for; that of a document has none."""
        if task != "text" and task != "document":
            self.needs_pictures(f"task {task}")
        if task == "caption":
            return self.tokenizer.encode(
                layout.caption_nodes(self.encode_picture(load_picture(_bytes(prompt))))
            )
        nodes = {
            "image": layout.image_nodes, "text": layout.paragraph_nodes, "document": layout.title_nodes,
            "pair": layout.pair_nodes,
        }[task]  # fmt: skip
        return self.tokenizer.encode(nodes(_words(prompt, empty=task == "pair")))

    def _read(self, task: Task, ids: Ids, answer: Answer, seed: int, index: int) -> Result:
        """What was written, as the task wants it."""
        image = text = html = None
        codes: tuple[int, ...] = ()
        for gap, fill in zip(answer.gaps, answer.fills, strict=False):
            if gap.kind == "image":
                codes = tuple(self.codes(fill.ids))
                image = self.pictures([codes])[0]
            else:
                text = "".join(map(_plain, self.tokenizer.decode(fill.ids))).strip()
        if task == "document":
            html = self.page([*(each for each in ids if isinstance(each, int)), *answer.fills[0].ids])
        kind: Literal["image", "text", "pair", "page"] = "page" if html else "image" if image else "text"
        logprob, ended = sum(each.logprob for each in answer.fills), all(each.ended for each in answer.fills)
        kind = "pair" if task == "pair" else kind
        return Result(kind, image, text, html, seed, index, logprob, ended, answer.trace, codes)

    def needs_pictures(self, what: str) -> None:
        """Refuse what a model without an image tokenizer cannot do; ConfigError (`bad_value`)."""
        if not self.vocab.image_size:
            raise ConfigError(
                f"{what} needs picture codes, and model {self.parts.name!r} writes words alone; use --task text, or"
                " another model.",
                code="bad_value",
            )

    def page(self, ids: Sequence[int]) -> str:
        """Ids of a document as a whole HTML page, pictures inside it."""
        return f'<!DOCTYPE html>\n<meta charset="utf-8">\n{render(self.tokenizer.decode(ids), self.picture_src)}\n'

    def picture_src(self, image: Image) -> str:
        """A picture of codes as a data: address."""
        return to_data_uri(encode_png(self.pictures([image.codes])[0]))


def load(name: str | Path | None = None, device: str = "auto") -> Kit:
    """Load a model by name, by folder, or the default one (`CM3KIT_MODEL`, else `emoji`).

    Raises:
        ModelError: there is no such model, or its files are damaged.
        ConfigError: the device is not there.
    """
    return Kit(load_parts(find(name)), device)


def resolve_device(name: str) -> torch.device:
    """The device of that name, `auto` being the GPU if there is one; ConfigError (`bad_value`) if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0][:120]
        raise ConfigError(
            f"device {name!r} cannot be used: {line}; use auto or cpu.", code="bad_value"
        ) from error
    return device


def _words(prompt: str | bytes | Path, empty: bool) -> str:
    words = " ".join(str(prompt).split()) if isinstance(prompt, str) else ""
    if not words and not empty:
        raise ConfigError("the prompt is empty; give some words.", code="bad_value")
    return words


def _bytes(prompt: str | bytes | Path) -> bytes:
    return prompt if isinstance(prompt, bytes) else read_bytes(Path(prompt))


def _plain(node: Node) -> str:
    return node.content if hasattr(node, "content") else ""
