"""Languages of token ids: a rule compiled to a tokenizer's tokens, for decoders that write in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from cm3kit.canvas import ConstraintSpec
from cm3kit.decoders.grammar.tables import Table


class Run(Protocol):
    """One answer, written from left to right."""

    def allowed(self, left: int) -> Tensor:
        """Ids that may come next if `left` more may be written, the end among them; bool (V,), not to be written to."""

    def take(self, id: int) -> None:
        """Append an allowed id."""

    @property
    def more(self) -> bool:
        """Whether any longer answer, of any length, begins with what is written."""

    def table(self) -> Table | None:
        """What allows the same from here on, from its state 0; None where that is no table, or too large a one."""


class Slots(Protocol):
    """One answer in masked positions; whatever was committed in whatever order, some filling of the rest is allowed."""

    @property
    def possible(self) -> bool:
        """Whether it can be filled at all."""

    def allowed(self, slot: int) -> Tensor:
        """Ids that a slot may take, written or not; bool (V,), not to be written to."""

    def commit(self, slot: int, id: int) -> None:
        """Write an id; ValueError if it is not allowed there."""

    def release(self, slot: int) -> None:
        """Open a slot again."""


class Language(Protocol):
    """All answers to a gap, as ids without the end id.

    Attributes:
        end: the id that ends an answer, which no answer holds.
        notes: lines on answers that were left out.
    """

    end: int
    notes: tuple[str, ...]

    def ending(self, end: int) -> Language:
        """The same answers before another end id."""

    def shortest(self) -> int | None:
        """Ids of the shortest answer; None if there is none."""

    def fits(self, most: int, exact: bool) -> bool:
        """Whether an answer has at most, or exactly, so many ids."""

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether these ids are an answer."""

    def goes_on(self, ids: Sequence[int]) -> bool:
        """Whether these ids begin an answer that is longer."""

    def run(self, most: int, exact: bool) -> Run:
        """An answer of at most, or exactly, so many ids, from left to right."""

    def slots(self, length: int, exact: bool) -> Slots:
        """An answer in so many masked positions, which repeats the end id up to the last one unless it is `exact`."""


class LanguageSource(Protocol):
    """Makes languages from constraints; `languages.Languages` is one."""

    def of(self, spec: ConstraintSpec, end: int) -> Language:
        """The answers that a constraint allows, before an end id; ConfigError where it cannot be used."""
