"""What the pipelines ask of a decoder: pages with gaps in, what belongs into the gaps out.

There are two: `rows.Rows` writes answers behind the page, left to right; `in_place.Boards` writes them where
they belong, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from cm3kit.config import Settings
from cm3kit.decoders.diffusion.passes import Verification
from cm3kit.decoders.diffusion.written import Cost
from cm3kit.decoders.grammar import Grammar
from cm3kit.pipelines.folder import Parts
from cm3kit.pipelines.options import GenerateOptions, Modality
from cm3kit.types import Fill, Trajectory
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError
from cm3kit_tokenizers.sequence import PageTokenizer

Ids = list[int | Gap]
Task = Literal["image", "text", "caption", "document", "pair"]
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Ground:
    """What ways of filling stand on: a loaded model folder, its tokenizer and its grammar."""

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
        trajectories: one for each board, in the order in which they were filled.
        cost: of all passes, those that only compared lengths too.
        verification: what a cache changed, over all that was written together; None unless it was asked for.
    """

    trajectories: tuple[Trajectory, ...] = ()
    cost: Cost = field(default_factory=Cost)
    verification: Verification | None = None

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


@dataclass(frozen=True, slots=True)
class Answer:
    """What a decoder wrote into the gaps of a page, one fill each; a document is one fill without a gap."""

    gaps: tuple[Gap, ...]
    fills: tuple[Fill, ...]
    trace: Trace | None = None


class Asked(Protocol):
    """A page laid out for a decoder."""

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The gaps that will be filled."""


Question = TypeVar("Question", bound=Asked)


class Way(Protocol[Question]):
    """A decoder, and how pages are laid out for it."""

    def settings(self, modality: Modality, options: GenerateOptions) -> Settings:
        """The decoder's settings; ConfigError for options out of range."""

    def task(self, task: Task, ids: Ids, options: GenerateOptions, seed: int) -> Question:
        """Lay out the page of a task.

        Raises:
            ConfigError: it does not fit the model's window (`too_long`), or the decoder cannot do it.
        """

    def window(self, ids: Ids, options: GenerateOptions, seed: int) -> Question:
        """Lay out the first gaps of a page that fit the model's window together with what is around them."""

    def fill(self, asked: Sequence[Question], options: GenerateOptions, watch: Watch) -> list[Answer]:
        """Fill pages that were laid out alike."""

    def lane(self, asked: Question, options: GenerateOptions) -> Hashable:
        """Pages of one lane can be filled together."""

    def flow(
        self, lane: Any, pull: Callable[[], Question | None], options: GenerateOptions
    ) -> Iterator[tuple[int, Answer | Cm3kitError]]:
        """Fill pages of a lane as they come, until `pull` has none and all are filled.

        Yields:
            The number of a page in the order of pulling, and its answer, or why it has none; in any order.
        """

    def plan(self, asked: Question, options: GenerateOptions) -> list[list[int]]:
        """How many slots each pass of each block is to write; ConfigError where there is no such plan."""

    def record(self, modality: Modality | None, options: GenerateOptions) -> Mapping[str, Any]:
        """How files say that they were made; None stands for all modalities."""


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


def modality_of(gaps: Sequence[Gap]) -> Modality:
    """Whose defaults a page takes; a document has no gaps, and is text."""
    pictures = [gap.kind == "image" for gap in gaps]
    return "text" if not any(pictures) else "image" if all(pictures) else "mixed"
