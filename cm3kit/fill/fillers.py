"""What the kit asks of a decoder: a canvas for a task or for the next gaps of a page, and what belongs into its spans.

There are two fillers: `causal.CausalFiller` writes from left to right, `diffusion.DiffusionFiller` in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from PIL import Image as Pillow

from cm3kit.config import Settings
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.scoring import Scored
from cm3kit.fill.layouts import Room
from cm3kit.fill.options import GenerateOptions, Modality
from cm3kit.fill.parts import Parts
from cm3kit.types import Canvas, Cost, MaskSpan, Result, Trajectory, Verification
from cm3kit_tokenizers.document import Gap, Image
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer

Ids = list[int | Gap]
Task = Literal["image", "text", "caption", "document", "pair"]
Progress = Callable[[int, int], None]
"""`progress(done, total)`."""


@dataclass(frozen=True, slots=True)
class ScoreHow:
    """How answers are scored.

    Attributes:
        method: of a model that writes in any order: a bound, or exactly for writing from left to right; `auto` takes
            what is exact where something is.
        rounds: random masks of a bound.
        spelt: whether canvases hold what the model reads, and not ids of a page.
    """

    method: Literal["auto", "exact", "left-to-right", "bound"] = "auto"
    rounds: int = 64
    spelt: bool = False


@dataclass(frozen=True)
class ModelContext:
    """What fillers are built from: a loaded model folder, its tokenizer and its grammar."""

    parts: Parts
    tokenizer: PageTokenizer
    grammar: Grammar

    def check(self, ids: int) -> None:
        """Refuse what is longer than the model's window; ConfigError (`too_long`)."""
        window = self.parts.defaults.window
        if ids > window:
            raise ConfigError(
                f"the prompt and its answer take {ids} ids, but the model's window is {window}; shorten the"
                " prompt or lower --max-tokens.",
                code="too_long",
            )


@dataclass(frozen=True, slots=True)
class Trace:
    """How something was written in place.

    Attributes:
        trajectories: one for each canvas, in the order in which they were filled.
        cost: of all passes, those that only compared lengths too.
        verification: what a cache changed, over all that was written together; None unless it was asked for.
    """

    trajectories: tuple[Trajectory, ...] = ()
    cost: Cost = field(default_factory=Cost)
    verification: Verification | None = None

    @staticmethod
    def of(results: Iterable[Result]) -> Trace | None:
        """That of results that have commits; None of none."""
        return Trace.joined(
            Trace((each.trajectory,), each.cost, each.verification)
            for each in results
            if each.commits is not None
        )

    @staticmethod
    def joined(traces: Iterable[Trace | None]) -> Trace | None:
        """All of them as one; None of none."""
        found = [trace for trace in traces if trace is not None]
        if not found:
            return None
        trajectories = tuple(each for trace in found for each in trace.trajectories)
        # What was written together has one verification in common.
        checks = {id(each.verification): each.verification for each in found}
        checked = sum_verifications(each for each in checks.values() if each is not None)
        return Trace(trajectories, sum_costs(trace.cost for trace in found), checked)


class Filler(Protocol):
    """A decoder, and how pages are laid out for it."""

    def settings(self, modality: Modality, options: GenerateOptions) -> Settings:
        """The decoder's settings; ConfigError for options out of range."""

    def task(self, task: Task, ids: Ids, options: GenerateOptions, seed: int) -> Canvas:
        """The canvas of a task's page.

        Raises:
            ConfigError: it does not fit the model's window (`too_long`), or the decoder cannot do it.
        """

    def window(self, ids: Ids, options: GenerateOptions, seed: int) -> Canvas:
        """The canvas of the first gaps that fit the model's window together with what is around them."""

    def fill(self, canvases: Sequence[Canvas], options: GenerateOptions, progress: Progress) -> list[Result]:
        """The results of canvases of one batch key."""

    def score(
        self, canvases: Sequence[Canvas], options: GenerateOptions, how: ScoreHow, progress: Progress
    ) -> list[Scored]:
        """How likely the answers are that spans of canvases give; ConfigError where that cannot be told."""

    def batch_key(self, canvas: Canvas, options: GenerateOptions) -> Hashable:
        """Canvases of one key can be filled together; ConfigError for options that cannot be used."""

    def stream(
        self, key: Any, canvases: Iterator[Canvas], options: GenerateOptions
    ) -> Iterator[tuple[int, Result | Cm3kitError]]:
        """The results of canvases of a batch key as they come; see `types.Decoder.stream`."""

    def room(self, gap: Gap, options: GenerateOptions) -> Room:
        """What a gap of a page may hold."""

    def end(self, gap: Gap, options: GenerateOptions) -> int:
        """The id that ends an answer to a gap."""

    def plan(self, canvas: Canvas, options: GenerateOptions) -> list[list[int]]:
        """How many positions each pass of each block is to write; ConfigError where there is no such plan."""

    def record(self, modality: Modality | None, options: GenerateOptions) -> Mapping[str, Any]:
        """How files say that they were made; None stands for all modalities."""


class LoadedModel(Protocol):
    """What pages and tasks ask of a model that is loaded; `kit.Kit` is one."""

    parts: Parts
    text: TextTokenizer
    vocab: Vocab
    image: ImageTokenizer
    tokenizer: PageTokenizer
    grammar: Grammar
    context: ModelContext

    def filler(self, options: GenerateOptions) -> Filler:
        """The decoder that the options choose; ConfigError (`bad_value`) if the model does not have it."""

    def needs_pictures(self, what: str, drawn: bool = True) -> None:
        """Refuse what needs an image tokenizer where there is none, or none that draws; ConfigError (`bad_value`)."""

    def codes(self, ids: Sequence[int]) -> list[int]:
        """Image codes of ids."""

    def pictures(self, codes: Sequence[Sequence[int]]) -> list[Pillow.Image]:
        """Codes as pictures."""

    def encode_picture(self, picture: Pillow.Image, whole: bool = False) -> list[int]:
        """Codes of a picture, cropped to a square or, if `whole`, padded to one."""

    def picture_src(self, image: Image) -> str:
        """A picture of codes as a data: address."""

    def page(self, ids: Sequence[int]) -> str:
        """Ids of a document as a whole HTML page, pictures inside it."""


def sum_costs(costs: Iterable[Cost]) -> Cost:
    """All costs as one."""
    total = Cost()
    for each in costs:
        total.full += each.full
        total.partial += each.partial
        total.token_forwards += each.token_forwards
        total.head_rows += each.head_rows
        total.wasted += each.wasted
    return total


def sum_verifications(found: Iterable[Verification]) -> Verification | None:
    """All of them as one; None of none."""
    total: Verification | None = None
    for each in found:
        total = total or Verification()
        total.passes += each.passes
        total.slots += each.slots
        total.largest = max(total.largest, each.largest)
        total.flips += each.flips
    return total


def modality_of(spans: Sequence[MaskSpan]) -> Modality:
    """Whose defaults a canvas takes, by what there is to write."""
    pictures = [span.kind == "image" for span in spans]
    return "text" if not any(pictures) else "image" if all(pictures) else "mixed"
