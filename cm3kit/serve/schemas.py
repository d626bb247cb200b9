"""Schemas of request bodies, and their validation errors."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request as Asked

from cm3kit.config import message_of
from cm3kit.decode_options import GenerateOptions, table
from cm3kit.fill.constraints import GUIDED, guided, pinned
from cm3kit.provenance.reproducing import options_of
from cm3kit_tokenizers.errors import ConfigError, PageError
from cm3kit_tokenizers.html.point import byte_offset, units_of
from cm3kit_tokenizers.html.spans import parse_tree, runs, view
from cm3kit_tokenizers.page import Page

MOST_RESULTS, MOST_STOPS, BODY_SECONDS = 128, 4, 60.0
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Body = TypeVar("Body", bound=BaseModel)
Place = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


def _bounded(name: str) -> Any:
    """An optional field with the bounds of a decoding option."""
    opt = table()[name].opt
    return Field(None, ge=opt.least, le=opt.most)


class Request(BaseModel):
    """A body in which null means that a field is not given."""

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        return (
            {name: each for name, each in data.items() if each is not None}
            if isinstance(data, dict)
            else data
        )


class Strict(Request):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Region(Strict):
    """A picture, by the end of its address or by the byte offset of its tag; all of it without a box."""

    image: str | None = None
    offset: int | None = Field(None, ge=0)
    box: tuple[int, int, int, int] | None = None


class Words(Strict):
    """A range of text of the page.

    Args:
        start: byte offset of a text node, and offset into its decoded text in UTF-16 units.
        end: as `start`, for the end of the range.
        text: the expected text; the request fails if the source differs.
    """

    start: Place
    end: Place
    text: str | None = None


class PageBody(Strict):
    """A page: its text, or its bytes in base64, and its pictures."""

    html: str | None = None
    html_base64: str | None = None
    pictures: dict[str, str] = Field(default_factory=dict, max_length=200)


class Guided(Request):
    """Constraints on fills, by vLLM's names; see `fill.constraints.guided`."""

    guided_choice: list[str] | None = None
    guided_regex: str | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_grammar: None = None  # not supported

    def constrain(self) -> tuple[str, ...]:
        """The same as entries of `GenerateOptions.constrain`; ConfigError (`bad_value`) where they are malformed."""
        return guided({name: getattr(self, name) for name in GUIDED})


class InfillBody(PageBody, Guided):
    """A page with gaps, written (`<mask>`) or selected; see `Page.uncovered`."""

    select: list[str] = Field(default_factory=list, max_length=100)
    regions: list[Region] = Field(default_factory=list, max_length=100)
    words: list[Words] = Field(default_factory=list, max_length=100)
    variants: int = Field(1, ge=1, le=32)
    seed: Seed | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    stream: bool = False
    shown: bool = False
    uncover: bool = False


class StreamOptions(Request):
    """Whether a stream ends with the token usage."""

    include_usage: bool = False


class CompletionBody(Guided):
    """OpenAI's `/v1/completions`.

    Unsupported fields that would change the response are refused; unlisted fields are ignored.
    """

    prompt: str | list[str]
    suffix: str | None = None
    model: str | None = None
    max_tokens: int | None = _bounded("max_tokens")
    temperature: float | None = _bounded("temperature")
    top_p: float | None = _bounded("top_p")
    n: int = Field(1, ge=1, le=32)
    seed: Seed | None = None
    stop: str | list[str] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    echo: Literal[False] = False
    logprobs: Literal[0] | None = None
    best_of: int | None = None
    presence_penalty: Literal[0] = 0
    frequency_penalty: Literal[0] = 0
    logit_bias: dict[str, float] = Field(default_factory=dict, max_length=0)

    @model_validator(mode="after")
    def _answerable(self) -> CompletionBody:
        count = len(self.prompts) * self.n
        if not 1 <= count <= MOST_RESULTS:
            raise ValueError(
                f"{len(self.prompts)} prompts times n = {self.n}; a request may have 1 to {MOST_RESULTS} results"
            )
        if self.best_of not in (None, self.n):
            raise ValueError(f"best_of = {self.best_of} is not supported; omit it")
        if len(self.stops) > MOST_STOPS or not all(self.stops):
            raise ValueError(f"stop: give at most {MOST_STOPS} texts, none of them empty")
        return self

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


class ImageBody(Request):
    """OpenAI's `/v1/images/generations`; unlisted fields are ignored."""

    prompt: str = Field(min_length=1)
    model: str | None = None
    n: int = Field(1, ge=1, le=32)
    size: str | None = None
    response_format: Literal["b64_json"] | None = None
    seed: Seed | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    stream: bool = False


async def read(request: Asked, kind: type[Body]) -> Body:
    """Read and validate the body of a request; ConfigError (`bad_value`) if it is invalid."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ConfigError("send JSON, with Content-Type: application/json", code="bad_value")
    try:
        sent = json.loads(await asyncio.wait_for(request.body(), BODY_SECONDS))
        # A lone surrogate, which JSON can escape and UTF-8 cannot encode.
        json.dumps(sent, ensure_ascii=False).encode()
        return kind.model_validate(sent)
    except TimeoutError:
        raise ConfigError(
            f"the body did not arrive within {BODY_SECONDS:.0f} seconds", code="bad_value"
        ) from None
    except UnicodeEncodeError:
        raise ConfigError("the body holds a lone surrogate", code="bad_value") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise ConfigError(f"{where}: {message_of(first)}", code="bad_value") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the body is not JSON: {error}", code="bad_value") from None


def options(
    given: Mapping[str, Any], more: tuple[str, ...] = (), page: Page | None = None
) -> GenerateOptions:
    """Options by their names in `GenerateOptions`, with `more` constraints and those of the page.

    Raises:
        ConfigError: one is none (`bad_value`), or a constraint names a file of this machine (`no_file`).
    """
    try:
        read = options_of(given)
    except ValueError as error:
        raise ConfigError(f"options: {error}", code="bad_value") from error
    read = replace(read, constrain=(*(read.constrain or ()), *more) or None)
    return pinned(read, None, page)


def seed_of(given: int | None) -> int:
    """The given seed, or a random one."""
    return secrets.randbelow(2**31) if given is None else given


def content_of(body: PageBody) -> bytes:
    """The bytes of the page; ConfigError (`bad_value`) unless exactly one form is given."""
    if (body.html is None) == (body.html_base64 is None):
        raise ConfigError("give either html or html_base64", code="bad_value")
    return body.html.encode() if body.html is not None else from_base64(body.html_base64 or "", "html_base64")


def from_base64(text: str, what: str) -> bytes:
    """Decode base64; ConfigError (`bad_value`) if it is malformed."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{what} is not base64", code="bad_value") from None


class Shelf:
    """Context manager: the pictures of a request as files in a temporary folder.

    Raises:
        ConfigError: a name is malformed or leaves the folder, or a content is not base64 (`bad_value`).
    """

    def __init__(self, pictures: Mapping[str, str]) -> None:
        self._files = [
            (_parts(name), from_base64(content, f"pictures.{name[:60]}"))
            for name, content in pictures.items()
        ]
        self._folder: TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path | None:
        """The folder; None if there are no pictures."""
        if not self._files:
            return None
        self._folder = TemporaryDirectory(prefix="cm3kit-")
        home = Path(self._folder.name).resolve()
        for parts, content in self._files:
            path = home.joinpath(*parts)
            if not path.is_dir() and not any(parent.is_file() for parent in path.parents):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return home

    def __exit__(self, *error: object) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    plain = all(part != ".." and "\0" not in part and "\\" not in part for part in parts)
    short = len(parts) <= 16 and all(len(part.encode("utf-8", "replace")) <= 200 for part in parts)
    if not (parts and plain and short):
        raise ConfigError(f"pictures: {name[:60]!r} is not a file name", code="bad_value")
    return parts


def page_of(body: InfillBody, base: Path | None) -> Page:
    """The page with all written and selected gaps of the request.

    Raises:
        PageError: see `Page.parse`, `select`, `region`, `words` and `picture`; no_mask without a gap.
    """
    page = Page.parse(content_of(body), base)
    for css in body.select:
        page = page.select(css)
    for region in body.regions:
        page = _region(page, region)
    spans = [span_of(page.data, page.codec, each) for each in body.words]
    for start, end in spans:
        page = page.words(start, end)
    if not page.gaps:
        raise PageError("There is no gap; select words or a picture, or write <mask>.", code="no_mask")
    return page.uncovered() if body.uncover else page


def _region(page: Page, region: Region) -> Page:
    if region.offset is not None:
        return page.picture(region.offset, region.box)
    if region.image is None or region.box is None:
        raise ConfigError("regions: give an offset, or an image and a box", code="bad_value")
    return page.region(region.image, region.box)


def span_of(data: bytes, codec: str, words: Words) -> tuple[int, int]:
    """The byte range of words; PageError (gap_place) if the source differs."""
    text = view(data)
    texts = {run.start: run.end for run in runs(text, parse_tree(text)) if run.kind == "text"}
    (first, before), (last, upto) = words.start, words.end
    if first not in texts or last not in texts:
        raise PageError("No text starts at these bytes; reload the page.", code="gap_place")
    start = first + byte_offset(data[first : texts[first]], codec, before, after=False)
    end = last + byte_offset(data[last : texts[last]], codec, upto, after=True)
    if words.text is not None:
        inside = [
            data[max(start, a) : min(end, b)] for a, b in sorted(texts.items()) if a < end and b > start
        ]
        pieces = (units_of(each.decode(codec, "replace")) for each in inside)
        source = "".join(read for piece in pieces for _, read in piece)
        if "".join(source.split()) != "".join(words.text.split()):
            raise PageError("The source differs at this position; use a CSS selector.", code="gap_place")
    return start, end
