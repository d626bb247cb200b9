"""Minimal HTML as a finite state machine on the logits: every run of allowed ids is a well-formed page.

The machine keeps an element stack (as Willard and Louf, arXiv:2307.09702, do for context-free grammars)
and counts for each id how many further ids it requires, so that the budget always suffices to close.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cm3kit.decoders.grammar.elements import CONTENT, TOP
from cm3kit.decoders.grammar.html_state import MAX_DEPTH, PIECES, Mode, State, action, complete
from cm3kit.decoders.grammar.language import Language, LanguageSource
from cm3kit.decoders.grammar.utf8 import TextAutomaton
from cm3kit.types import MaskSpan, SpanKind
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import MARKUP, Vocab


@dataclass(slots=True)
class _Menu:
    """Ids by cost for one key, and the masks made of them so far."""

    prices: list[int]
    ids: list[list[int]]
    end: int | None
    masks: dict[int, Tensor] = field(default_factory=dict)


class Grammar:
    """The ids that may come next.

    Args:
        vocab: the id space.
        image_length: codes of a whole picture, H * W.
        text_bytes: bytes of each text token, so that text holds whole characters; optional.
        without: a byte that no text token that is written may hold.
        languages: compiles `MaskSpan.constraint`; without, no span may have one.
    """

    def __init__(
        self, vocab: Vocab, image_length: int, text_bytes: Sequence[bytes] | None = None, without: bytes = b"",
        languages: LanguageSource | None = None,
    ) -> None:  # fmt: skip
        self.vocab, self.image_length, self._languages = vocab, image_length, languages
        self._text = TextAutomaton(vocab.text_size, text_bytes)
        barred = {token for token, piece in enumerate(text_bytes or ()) if without and without in piece}
        self._words = [
            [
                kept
                for tokens in groups.values()
                if (kept := [vocab.text.start + each for each in tokens if each not in barred])
            ]
            for groups in self._text.groups
        ]
        self._image = list(vocab.image)
        self._menus: dict[tuple[Any, ...], _Menu] = {}
        self._codes: dict[State, State] = {}
        self._actions = dict(self._action_table())

    def __len__(self) -> int:
        return len(self.vocab)

    def start(self, span: MaskSpan, ids: Sequence[int]) -> State:
        """State before the first id of a span of a canvas with these ids.

        Raises:
            ConfigError: its budget cannot close what is open (`bad_value`).
        """
        context = ids[: span.context] if span.kind in ("content", "document") else ()
        exact = span.exact and span.kind != "document"
        state = self.begin(span.kind, exact, self.after(context))
        if span.end is not None or span.ends or span.may_be_empty:
            end = state.end if span.end is None else span.end
            written = state.written or span.may_be_empty
            state = self.settled(replace(state, end=end, others=span.ends, written=written))
        if span.kind == "document" and state.cost > span.max_tokens:
            raise ConfigError(
                f"A budget of {span.max_tokens} ids cannot close what the prompt opens;"
                f" allow at least {state.cost}.",
                code="bad_value",
            )
        return state

    def language(self, span: MaskSpan) -> Language:
        """The answers that a span's constraint allows; ConfigError where it has none that can be used here."""
        if self._languages is None or span.constraint is None:
            raise ConfigError(f"the gap {span.gap} has no constraint that is known here.", code="bad_value")
        end = self.vocab.eoss if span.end is None else span.end
        return self._languages.of(span.constraint, end)

    def begin(self, kind: SpanKind, exact: bool, before: State) -> State:
        """State before the first id of a run of this kind.

        Args:
            exact: whether the run has a fixed length, and so no end id.
            before: the state of the page there, as `after` gives it; only content and documents depend on it.
        """
        end = self.vocab.eoss
        if kind == "image":
            return self.settled(State(Mode.CODES, end, exact=True))
        if kind == "attribute":
            return self.settled(State(Mode.TEXT, end, exact=exact))
        if kind == "content":
            return self.settled(State(Mode.CONTENT, end, exact=exact, outer=before.stack))
        return self.settled(replace(before, end=self.vocab.eod, exact=exact, whole=True))

    def after(self, ids: Sequence[int], state: State | None = None) -> State:
        """The state of a page after more of its ids; specials and sentinels change nothing.

        Args:
            state: the state before them; None at the start of a page.
        """
        state = state or self.settled(State(Mode.CONTENT, self.vocab.eoss))
        for id in ids:
            state = self.advance(state, id)
        return state

    def closed(self, state: State) -> bool:
        """Whether a run in this state is a whole answer: everything is closed, and something is written."""
        whole = state.mode in (Mode.CONTENT, Mode.TEXT, Mode.CODES) and not state.stack and not state.utf8
        return whole and state.written

    def allowed(self, state: State, budget: int) -> Tensor:
        """Ids that may come next, bool (V,), cached: do not write to it.

        Args:
            budget: ids that are left, the end id not counted; at 0 the run is over and nothing is asked.
        """
        menu = self._menus.get(state.key)
        if menu is None:
            menu = self._menus[state.key] = self._menu(state)
        affordable = bisect_right(menu.prices, budget - state.cost)
        mask = menu.masks.get(affordable)
        if mask is None:
            mask = menu.masks[affordable] = self._mask(menu, affordable, state)
        return mask

    def advance(self, state: State, id: int) -> State:
        """State after an id; for an id that is not allowed, the closest state."""
        vocab = self.vocab
        if id in vocab.text:
            utf8 = self._text.step(state.utf8, id - vocab.text.start)
            if utf8 == state.utf8 and state.written:
                return state
            return self.settled(replace(state, utf8=utf8, written=True))
        if id in vocab.image:
            if state.mode is Mode.SRC:
                return self._next_code(state)
            return state if state.written else self.settled(replace(state, written=True))
        if id in vocab.markup:
            return self.settled(self._actions[id](replace(state, utf8=0, written=True)))
        return self.settled(replace(state, mode=Mode.CONTENT, stack=(), tag="")) if id == vocab.eod else state

    def _next_code(self, state: State) -> State:
        # Pictures of one place pass through the same states over and over.
        following = self._codes.get(state)
        if following is None:
            if len(self._codes) > 1 << 14:
                self._codes.clear()
            following = self.settled(replace(state, left=max(0, state.left - 1), written=True))
            self._codes[state] = following
        return following

    def settled(self, state: State) -> State:
        """The state with its `cost` and `key` filled in."""
        return replace(state, cost=self._cost(state), key=self.key(state))

    def _cost(self, state: State) -> int:
        cost = len(state.stack) + self._text.debt[state.utf8]
        if state.mode in (Mode.VALUE, Mode.SRC):
            cost += state.left + 1
        if state.tag:
            cost += 1 + (state.tag == "a") + 2 * (not complete(state))
        return cost

    def key(self, state: State) -> tuple[Any, ...]:
        """What `State.key` holds."""
        run = (state.mode, state.end, state.others, state.exact, state.written, state.utf8)
        if state.mode is Mode.CONTENT:
            around = (*state.outer, *state.stack)
            inside = around[-1] if around else ""
            closes = state.stack[-1] if state.stack else ""
            return (*run, inside, closes, "a" in around, len(state.stack) >= MAX_DEPTH, state.whole)
        if state.mode is Mode.SRC:
            return (*run, state.left > 0)
        return (*run, state.tag, state.last)

    def _menu(self, state: State) -> _Menu:
        by_price: dict[int, list[list[int]]] = {}
        for ids in self.moves(state):
            price = 1 + self.advance(state, ids[0]).cost - state.cost
            by_price.setdefault(price, []).append(ids)
        prices = sorted(by_price)
        cheaper = [[id for group in by_price[price] for id in group] for price in prices]
        may_end = self.closed(state) and not state.exact
        return _Menu(prices, cheaper, state.end if may_end else None)

    def _mask(self, menu: _Menu, affordable: int, state: State) -> Tensor:
        mask_V = torch.zeros(len(self.vocab), dtype=torch.bool)
        for ids in menu.ids[:affordable]:
            mask_V[ids] = True
        if menu.end is not None or not affordable:
            mask_V[[state.end, *state.others]] = True
        return mask_V

    def moves(self, state: State) -> Iterator[list[int]]:
        """Groups of ids that may come next if the budget suffices; those of one group lead to one state.

        A group of more than one id is one shared list; do not write to it.
        """
        if state.mode is Mode.CODES or (state.mode is Mode.SRC and state.left):
            yield self._image
            return
        text = state.mode in (Mode.VALUE, Mode.TEXT)
        if state.mode is Mode.CONTENT:
            around = (*state.outer, *state.stack)
            text = "" in (CONTENT[around[-1]] if around else TOP)
        if text:
            yield from self._words[state.utf8]
        if not state.utf8:
            for piece in PIECES[state.mode](state, self.image_length):
                yield [self.vocab.markup_id(piece)]

    def _action_table(self) -> Iterator[tuple[int, Callable[[State], State]]]:
        for id, piece in zip(self.vocab.markup, MARKUP, strict=True):
            yield id, action(piece, self.image_length)
