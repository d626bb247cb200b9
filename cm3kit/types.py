"""The nouns of cm3kit. Shape suffixes: B rows, T positions, V vocabulary, N image codes, C H W pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Generator

from cm3kit_tokenizers.document import Gap

BlankKind = Literal["content", "attribute", "image", "document"]


@dataclass(frozen=True, slots=True)
class Span:
    """Ids `start:stop` of a document that an objective hid."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Exercise:
    """One document as a question with its marked answer (training).

    `ids[t]` is a target that weighs `weights[t]`. The model reads it off the place before it (`shift`, as
    causal models do) or off its own place; with `shift`, `weights[0]` is unused.

    Attributes:
        inputs: what the model sees instead of `ids`.
        blocks: number of the block each id is in, and `noisy` whether it is of the noised copy: who looks
            where (`models.attention.block_mask`). Unless given, every id looks left.
        places: position ids; 0, 1, … unless given.
        time: noise level in [0, 1], the share that is hidden on average, of the whole document or id by id. In
            use it is the share that is still open, whatever the schedule was.
        mass: what this document adds to the divisor of the loss; the sum of its weights unless given.
    """

    ids: list[int]
    weights: list[float]
    spans: tuple[Span, ...] = ()
    inputs: list[int] | None = None
    blocks: list[int] | None = None
    noisy: list[bool] | None = None
    places: list[int] | None = None
    time: float | list[float] = 0.0
    shift: bool = True
    mass: float | None = None


@dataclass(frozen=True, slots=True)
class Blank:
    """A run of ids that a decoder writes after the prompt.

    `lead` is forced first (the sentinel). `length` is the exact number of ids, or None where
    `<eoss>` (or `<eod>` for a document) ends it within `max_tokens`, the end id not counted.
    `gap` and `part` say where the run belongs on the page. `end` is another id that ends it; one that
    the next lead begins with is written once.
    """

    kind: BlankKind
    max_tokens: int
    lead: tuple[int, ...] = ()
    length: int | None = None
    gap: int = 0
    part: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to complete: the prompt, then each blank in turn.

    `guides` are the prompts of the guidance streams: none, the unconditional one, or
    (unconditional, image-only) for three streams. `seed` starts this row's own generator.
    """

    prompt: tuple[int, ...]
    blanks: tuple[Blank, ...]
    guides: tuple[tuple[int, ...], ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Canvas:
    """Questions without answers (sampling)."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Fill:
    """What a decoder wrote into one blank, without sentinel and end id.

    `logprob` sums log p over all ids of what was sampled: the ids, and the end id unless an exact
    length or the budget forced it. It is taken before guidance, temperature and cuts. `ended` is False
    where the budget ended the run.
    """

    ids: tuple[int, ...]
    logprob: float
    ended: bool


@dataclass(frozen=True, slots=True)
class Stretch:
    """A run `start:stop` of slots on a board that a decoder writes in place.

    In a `padded` stretch `<eoss>` ends the answer, and every slot from the first one on holds it; any
    other answer is as long as the stretch. `gap` and `part` say where the run belongs on the page.
    """

    kind: BlankKind
    start: int
    stop: int
    padded: bool = False
    gap: int = 0
    part: int = 0


@dataclass(frozen=True, slots=True)
class Board:
    """One sequence to fill in place: `ids` holds the mask id at every slot of its stretches.

    `guide` is the same sequence with its condition masked too, for guidance; empty where there is none.
    `seed` starts this row's own generator.
    """

    ids: tuple[int, ...]
    stretches: tuple[Stretch, ...]
    guide: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Commit:
    """What one forward pass changed in one row, best score first, and among equals from left to right.

    `logprobs` are those of the model before temperature and cuts; `scores` those that chose the slots.
    A `remask` opens slots again (its ids are those taken back), an `edit` replaces ids.
    """

    step: int
    positions: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    scores: tuple[float, ...]
    kind: Literal["write", "remask", "edit"] = "write"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """How a row was written: from `board` by `commits`, in order."""

    board: Board
    commits: tuple[Commit, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What a decoder committed once: `ids[row]` is the id written in that row, or None.

    A decoder that writes several ids at once reports `commits[row]` instead.
    """

    index: int
    total: int
    ids: tuple[int | None, ...]
    commits: tuple[Commit | None, ...] = ()


Watch = Callable[[Step], None]


def unwatched(step: Step) -> None:
    """The `Watch` that looks away."""


@dataclass(frozen=True, slots=True)
class Posed:
    """A page with gaps, laid out for a decoder, and what is needed to read the answer back."""

    row: Row
    gaps: tuple[Gap, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Laid:
    """A page with gaps as a board to fill in place; `gaps` belong to its stretches, one each."""

    board: Board
    gaps: tuple[Gap, ...]


class Objective(Protocol):
    """How clean documents become questions in training."""

    @property
    def causal(self) -> bool:
        """Whether the backbone may only look left."""

    def exercises(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Exercise]:
        """Hide part of each document, in at most `budget` ids; at least one exercise for each."""


class Writer(Objective, Protocol):
    """An objective whose models write rows: prompt, then answers."""

    def pose(self, ids: Sequence[int | Gap], max_tokens: int, seed: int) -> Posed:
        """Lay a document with gaps out as a row to complete."""

    def read(self, posed: Posed, ids: Sequence[int | Gap], fills: Sequence[Fill]) -> list[int]:
        """Put the answers back where the gaps were."""


class Decoder(Protocol):
    """Anything that fills a canvas."""

    def fill(self, canvas: Canvas, watch: Watch = unwatched) -> list[tuple[Fill, ...]]:
        """Return, for each row, what was written into each of its blanks."""
