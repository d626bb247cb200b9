"""Where an answer stands that is written from left to right: by the page's grammar, or by a constraint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.html_state import Mode, State
from cm3kit.decoders.grammar.html_table import HtmlTable
from cm3kit.decoders.grammar.language import Run
from cm3kit.decoders.grammar.languages import refuse_unfit
from cm3kit.decoders.grammar.tables import Start
from cm3kit.types import MaskSpan


class SpanRun(Protocol):
    """What the decoder asks of an answer."""

    end: int
    others: tuple[int, ...]
    exact: bool

    @property
    def image(self) -> bool:
        """Whether the next id is an image code."""

    @property
    def kinds(self) -> tuple[bool, ...]:
        """What `image` may come to be from here on."""

    @property
    def awaits_end(self) -> bool:
        """Whether, with its budget spent, the answer still has to say that it ends; nothing else may follow."""

    def allowed(self, left: int) -> Tensor:
        """Ids that may come next if `left` more may be written, bool (V,): do not write to it."""

    def start(self, html: HtmlTable) -> Start | None:
        """Where it stands in a table that allows the same, before its first id; None where there is none."""

    def take(self, id: int) -> None:
        """Go on by an id."""

    def fork(self) -> SpanRun | None:
        """The same place, to go on from without this one; None where what stands is accounted for once."""


class HtmlRun:
    """By the grammar of minimal HTML."""

    awaits_end = False

    def __init__(self, grammar: Grammar, state: State) -> None:
        self._grammar, self._state = grammar, state
        self.end, self.others, self.exact = state.end, state.others, state.exact

    @property
    def image(self) -> bool:
        """See `SpanRun`."""
        return self._state.image

    @property
    def kinds(self) -> tuple[bool, ...]:
        """See `SpanRun`."""
        mode = self._state.mode
        return (mode is Mode.CODES,) if mode in (Mode.CODES, Mode.TEXT) else (False, True)

    def allowed(self, left: int) -> Tensor:
        """See `SpanRun`."""
        return self._grammar.allowed(self._state, left)

    def start(self, html: HtmlTable) -> Start | None:
        """See `SpanRun`."""
        return html.start(self._state)

    def fork(self) -> HtmlRun:
        """See `SpanRun`."""
        return HtmlRun(self._grammar, self._state)

    def take(self, id: int) -> None:
        """See `SpanRun`."""
        self._state = self._grammar.advance(self._state, id)


class ConstrainedRun:
    """By a constraint, whose answers are whole in whatever budget they have."""

    image = False
    kinds = (False,)
    others: tuple[int, ...] = ()

    def __init__(self, run: Run, end: int, exact: bool) -> None:
        self._run, self.end, self.exact = run, end, exact

    @property
    def awaits_end(self) -> bool:
        """See `SpanRun`; an answer that could go on has been cut."""
        return not self.exact and not self._run.more

    def allowed(self, left: int) -> Tensor:
        """See `SpanRun`."""
        return self._run.allowed(left)

    def start(self, html: HtmlTable) -> Start | None:
        """See `SpanRun`."""
        table = self._run.table()
        return None if table is None else Start(table, 0, self.exact)

    def take(self, id: int) -> None:
        """See `SpanRun`."""
        self._run.take(id)

    def fork(self) -> None:
        """See `SpanRun`."""


def start_run(grammar: Grammar, span: MaskSpan, ids: Sequence[int]) -> SpanRun:
    """Where a span of a canvas with these ids stands before its first id.

    Raises:
        ConfigError: no answer that it may hold is whole (`bad_value`).
    """
    if span.constraint is None:
        return HtmlRun(grammar, grammar.start(span, ids))
    language = grammar.language(span)
    before = grammar.after(ids[: span.context] if span.kind == "content" else ())
    refuse_unfit(language, span, before)
    return ConstrainedRun(language.run(span.max_tokens, span.exact), language.end, span.exact)
