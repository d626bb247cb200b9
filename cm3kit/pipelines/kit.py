"""The object behind every command: a loaded model that generates and fills pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image as Pillow

from cm3kit.decoders.autoregressive import Autoregressive
from cm3kit.decoders.grammar import Grammar
from cm3kit.decoders.settings import DecodeConfig, Precision
from cm3kit.objectives import CausalMask
from cm3kit.pipelines import layout
from cm3kit.pipelines.filling import Filled, FilledGap, PageFiller
from cm3kit.pipelines.folder import Parts, available, find, fingerprints, load_parts
from cm3kit.pipelines.outputs import encode_png
from cm3kit.pipelines.pages import read_bytes
from cm3kit.rng import stream
from cm3kit.types import Canvas, Fill, Row, Step
from cm3kit_tokenizers.document import Image, Node
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.html.minimal import render
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.pictures import load_picture, to_data_uri
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.vq.model import to_picture

__all__ = ["Filled", "FilledGap", "GenerateOptions", "Kit", "Result", "available", "load"]

Task = Literal["image", "text", "caption", "document"]
Watch = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What a user may change; None leaves the model's default."""

    guidance: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    parallel: bool = False
    batch_size: int | None = None
    precision: Precision | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One sample: a picture, words or a page. `seed` and `index` make it again."""

    kind: Literal["image", "text", "page"]
    image: Pillow.Image | None
    text: str | None
    html: str | None
    seed: int
    index: int
    logprob: float
    ended: bool


class Kit:
    """A model folder, ready to use."""

    def __init__(self, parts: Parts, device: str = "auto") -> None:
        self.parts = parts
        self.device = _device(device)
        self.text, self.vocab = parts.text, parts.vocab
        self.image = parts.image.to(self.device)
        self.backbone = parts.backbone.to(self.device)
        self.tokenizer = PageTokenizer(parts.text, parts.vocab)
        self.objective = CausalMask(
            parts.vocab, parts.defaults.preset, continues=tuple(parts.text.continues), grid=parts.image.grid
        )
        self._decoders: dict[DecodeConfig, Autoregressive] = {}

    def generate(
        self, prompt: str | bytes | Path, *, task: Task = "image", n: int = 1, seed: int = 0,
        options: GenerateOptions | None = None, watch: Watch = lambda done, total: None,
    ) -> list[Result]:  # fmt: skip
        """`n` pictures, texts, captions or pages from one prompt.

        Args:
            prompt: words; for a caption the path or the bytes of a picture.
            seed: sample i draws from the stream (seed, i), whatever `n` is.

        Raises:
            ConfigError: the prompt is empty or too long, an option is out of range.
            PictureError: the picture cannot be read.
        """
        options = options or GenerateOptions()
        pose, read = {
            "image": (self._pose_image, self._read_image),
            "text": (self._pose_text, self._read_text),
            "caption": (self._pose_caption, self._read_text),
            "document": (self._pose_document, self._read_document),
        }[task]
        config = self.config("image" if task == "image" else "text", options)
        row = pose(prompt, config, options)
        self._check(row)
        rows = tuple(replace(row, seed=stream(seed, index)) for index in range(n))
        fills = self.decode(rows, config, watch)
        return [read(row, filled[0], seed, index) for index, filled in enumerate(fills)]

    def infill(
        self, page: Page, *, variants: int = 1, seed: int = 0,
        options: GenerateOptions | None = None, watch: Watch = lambda done, total: None,
    ) -> list[Filled]:  # fmt: skip
        """Fill every gap of a page, `variants` times; all bytes outside the gaps stay as they are.

        Raises:
            PageError: the page has no gap. PictureError: a picture with a missing region cannot be read.
        """
        return PageFiller(self, page, options or GenerateOptions()).fill(variants, seed, watch)

    def config(self, modality: Literal["image", "text"], options: GenerateOptions) -> DecodeConfig:
        """The decoder's settings: the model's defaults for a modality under the user's options."""
        base = getattr(self.parts.defaults, modality)
        chosen = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
        changed = {key: value for key, value in chosen.items() if value is not None}
        updates: dict[str, Any] = {
            "text": {**base.text.model_dump(), **changed},
            "image": {**base.image.model_dump(), **changed},
            "parallel": options.parallel,
        }
        if options.guidance is not None:
            updates["guidance"] = options.guidance
        if options.batch_size is not None:
            updates["batch_size"] = options.batch_size
        if options.precision is not None:
            updates["precision"] = options.precision
        try:
            return DecodeConfig.model_validate({**base.model_dump(), **updates})
        except ValueError as error:
            line = " ".join(str(error).split("\n")[1:3]).strip()
            raise ConfigError(f"option out of range: {line}.", code="bad_value") from error

    def decode(self, rows: Sequence[Row], config: DecodeConfig, watch: Watch) -> list[tuple[Fill, ...]]:
        """Run the decoder over rows."""
        if config not in self._decoders:
            self._decoders[config] = Autoregressive(self.backbone, self._grammar(), config)

        def hear(step: Step) -> None:
            watch(step.index + 1, step.total)

        return self._decoders[config].fill(Canvas(tuple(rows)), hear)

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
        return {
            "name": parts.name,
            "folder": str(parts.folder),
            "parameters": {
                "decoder": sum(each.numel() for each in self.backbone.parameters()),
                "image": sum(each.numel() for each in self.image.parameters()),
            },
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

    def _pose_image(self, prompt: str | bytes | Path, config: DecodeConfig, options: GenerateOptions) -> Row:
        height, width = self.image.grid
        return layout.image_row(self.tokenizer, _words(prompt), height * width, 0, config.guidance != 1)

    def _pose_document(
        self, prompt: str | bytes | Path, config: DecodeConfig, options: GenerateOptions
    ) -> Row:
        words = _words(prompt)
        row = layout.document_row(self.tokenizer, words, 1, 0)
        room = self.parts.defaults.window - len(row.prompt) - 1
        wanted = min(options.max_tokens or layout.MAX_TOKENS["document"], max(1, room))
        return layout.document_row(self.tokenizer, words, wanted, 0)

    def _pose_text(self, prompt: str | bytes | Path, config: DecodeConfig, options: GenerateOptions) -> Row:
        ids = self.tokenizer.encode(layout.paragraph_nodes(_words(prompt)))
        return self.objective.pose(ids, options.max_tokens or layout.MAX_TOKENS["content"], 0).row

    def _pose_caption(
        self, prompt: str | bytes | Path, config: DecodeConfig, options: GenerateOptions
    ) -> Row:
        codes = self.encode_picture(load_picture(_bytes(prompt)))
        ids = self.tokenizer.encode(layout.caption_nodes(codes))
        return self.objective.pose(ids, options.max_tokens or layout.MAX_TOKENS["attribute"], 0).row

    def _check(self, row: Row) -> None:
        longest = len(row.prompt) + sum(blank.max_tokens + 2 for blank in row.blanks)
        if longest > self.parts.defaults.window:
            raise ConfigError(
                f"the prompt and its answer take {longest} ids, but the model's window is"
                f" {self.parts.defaults.window}; shorten the prompt or lower --max-tokens.",
                code="too_long",
            )

    def _read_image(self, row: Row, fill: Fill, seed: int, index: int) -> Result:
        picture = self.pictures([self.codes(fill.ids)])[0]
        return Result("image", picture, None, None, seed, index, fill.logprob, fill.ended)

    def _read_text(self, row: Row, fill: Fill, seed: int, index: int) -> Result:
        text = "".join(_plain(node) for node in self.tokenizer.decode(fill.ids)).strip()
        return Result("text", None, text, None, seed, index, fill.logprob, fill.ended)

    def _read_document(self, row: Row, fill: Fill, seed: int, index: int) -> Result:
        html = self.page((*row.prompt, *fill.ids))
        return Result("page", None, None, html, seed, index, fill.logprob, fill.ended)

    def page(self, ids: Sequence[int]) -> str:
        """Ids of a document as a whole HTML page, pictures inside it."""
        return f'<!DOCTYPE html>\n<meta charset="utf-8">\n{render(self.tokenizer.decode(ids), self.picture_src)}\n'

    def picture_src(self, image: Image) -> str:
        """A picture of codes as a data: address."""
        return to_data_uri(encode_png(self.pictures([image.codes])[0]))

    def _grammar(self) -> Grammar:
        return Grammar(self.vocab, self.image.grid[0] * self.image.grid[1], text_bytes=self.text.pieces)


def load(name: str | Path | None = None, device: str = "auto") -> Kit:
    """Load a model by name, by folder, or the default one (`CM3KIT_MODEL`, else `emoji`).

    Raises:
        ModelError: there is no such model, or its files are damaged.
        ConfigError: the device is not there.
    """
    return Kit(load_parts(find(name)), device)


def _device(name: str) -> torch.device:
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


def _words(prompt: str | bytes | Path) -> str:
    words = " ".join(str(prompt).split()) if isinstance(prompt, str) else ""
    if not words:
        raise ConfigError("the prompt is empty; give some words.", code="bad_value")
    return words


def _bytes(prompt: str | bytes | Path) -> bytes:
    return prompt if isinstance(prompt, bytes) else read_bytes(Path(prompt))


def _plain(node: Node) -> str:
    return node.content if hasattr(node, "content") else ""
