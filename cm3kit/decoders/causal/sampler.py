"""Draw the ids of a step where the logits are: all that rows need for it lies on that device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3kit.decoders.causal.automata import Automata
from cm3kit.decoders.causal.guidance import combine
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.html_table import HtmlTable
from cm3kit.decoders.replay import Replay
from cm3kit.decoders.settings import CompileName, DecodeConfig, Sampling
from cm3kit.decoders.token_sampling import Routes, draw, penalize
from cm3kit.decoders.transfer import put, upload

MASK_BYTES, MOST_MASKS, MOST_WAYS = 32 * 2**20, 1024, 256
TEXT, IMAGE, IDLE, EITHER = range(4)
"""How a place draws: as text, as a picture, not at all, or as its row turns out to stand."""


@dataclass(slots=True)
class Turn:
    """What a place does in a step.

    Attributes:
        mask_V: ids that may come; None where none is drawn, and `id` follows, or where tables tell them (`Automata`).
        number: index of the row's number in [0, 1); tables have their own.
        fresh: whether no text of its span has been written.
    """

    mask_V: Tensor | None
    id: int
    how: int = IDLE
    number: int = 0
    fresh: bool = False

    @property
    def by_table(self) -> bool:
        """Whether the place goes on from where its row stands in a table."""
        return self.mask_V is None and self.how != IDLE


@dataclass(frozen=True, slots=True)
class _Ways:
    """How places draw: what is known of it on the host, and temperature, top-k, top-p and whether not at all, (B,)."""

    setting: tuple[Routes, bool]
    tensors: tuple[Tensor, Tensor, Tensor, Tensor]


class MaskTable:
    """Masks of ids as rows of one tensor on the device, so that another mask is another index.

    Args:
        vocab: V.
        least: rows that one step may need.
    """

    def __init__(self, vocab: int, least: int, device: torch.device) -> None:
        self._most = max(least + 1, min(MOST_MASKS, MASK_BYTES // vocab))
        self.rows_RV = torch.empty(self._most, vocab, dtype=torch.bool, device=device)
        self._forget()

    def _forget(self) -> None:
        self._masks: list[Tensor] = [torch.ones(self.rows_RV.shape[1], dtype=torch.bool)]
        self._row_of = {id(self._masks[0]): 0}
        put(self.rows_RV[0], self._masks[0])

    def rows_of(self, masks: Sequence[Tensor | None]) -> list[int]:
        """The row of each mask; of those that are None one that allows all."""
        rows = [0 if each is None else self._row_of.get(id(each), -1) for each in masks]
        if -1 not in rows:
            return rows
        new = {id(each): each for each, row in zip(masks, rows, strict=True) if row < 0 and each is not None}
        if len(self._masks) + len(new) > self._most:
            self._forget()
            return self.rows_of(masks)
        for key, mask_V in new.items():
            # A mask is known by what it is, not by what it holds, and has to live as long as its row.
            self._row_of[key] = len(self._masks)
            self._masks.append(mask_V)
            put(self.rows_RV[self._row_of[key]], mask_V)
        return self.rows_of(masks)


class Sampler:
    """Draws for a number of places.

    Args:
        count: streams of a place.
        numbers: most numbers in [0, 1) that a row has.
        ahead: whether nothing may be read back (`Engine.ahead`); the ids are the same.
    """

    def __init__(
        self, grammar: Grammar, config: DecodeConfig, count: int, numbers: int, device: torch.device, ahead: bool
    ) -> None:  # fmt: skip
        self.config, self.count, self.device = config, count, device
        self.places, self.vocab = config.batch_size, len(grammar)
        self.text = grammar.vocab.text
        self.masks = MaskTable(self.vocab, self.places, device)
        self.uniforms_BN = torch.zeros(self.places, numbers, dtype=torch.float64, device=device)
        self.seen_BV = torch.zeros(self.places, self.vocab, dtype=torch.bool, device=device)
        self.bias_V = torch.zeros(self.vocab, device=device)
        # Sentinels are allowed only where one ends a run.
        ends = [grammar.vocab.eoss, grammar.vocab.eod, *grammar.vocab.sentinel_range]
        self.bias_V[ends] = config.eoss_bias
        self._kinds = config.text, config.image, Sampling(temperature=0)
        self._ways: dict[tuple[int, ...], _Ways] = {}
        self.automata = Automata(HtmlTable.of(grammar), self.places, device) if ahead else None
        self._pad = grammar.vocab.pad
        two = [(each.temperature, each.top_k, each.top_p) for each in (config.text, config.image)]
        heat_2, top_k_2, top_p_2 = (upload(each, device, torch.float64) for each in zip(*two, strict=True))
        self._ways_2 = heat_2, top_k_2.long(), top_p_2
        # Fusing would gain little here, and round other ids.
        mode: CompileName = "auto" if ahead and config.compile != "off" else "off"
        self._drawn = Replay(device, mode)

    def admit(self, place: int, uniforms: Sequence[float]) -> None:
        """Take the numbers of a new row."""
        self.uniforms_BN[place, : len(uniforms)] = upload(uniforms, self.device, torch.float64)

    def __call__(self, logits_SV: Tensor, orders: Sequence[Turn]) -> tuple[Tensor, Tensor]:
        """The id (B,) that each place goes on by, and its log-probability (B,).

        Args:
            logits_SV: of the slot k * places + b for stream k of place b.
        """
        if self.automata is not None:
            return self._by_tables(logits_SV, orders)
        rows = self.masks.rows_of([each.mask_V for each in orders])
        told = [(row, each.id, each.number, each.fresh) for row, each in zip(rows, orders, strict=True)]
        ways = self._ways_of(tuple(each.how for each in orders))
        found: tuple[Tensor, Tensor] = self._drawn(
            self._draw, ways.setting, logits_SV, upload(told, self.device), *ways.tensors
        )
        return found

    def _ways_of(self, kinds: tuple[int, ...]) -> _Ways:
        # Most steps have those of the step before.
        if kinds not in self._ways:
            if len(self._ways) > MOST_WAYS:
                self._ways.clear()
            ways = [self._kinds[each] for each in kinds]
            settings = [(each.temperature, each.top_k, each.top_p) for each in ways]
            temperatures, top_k, top_p = (
                upload(each, self.device, torch.float64) for each in zip(*settings, strict=True)
            )
            idle_B = upload([each == IDLE for each in kinds], self.device, torch.bool)
            routes = Routes.of(settings, look=True)
            self._ways[kinds] = _Ways((routes, IDLE in kinds), (temperatures, top_k.long(), top_p, idle_B))
        return self._ways[kinds]

    def _by_tables(self, logits_SV: Tensor, orders: Sequence[Turn]) -> tuple[Tensor, Tensor]:
        rows = self.masks.rows_of([each.mask_V for each in orders])
        told = [
            (each.by_table, each.how == IDLE, row, each.id, each.number, each.fresh)
            for row, each in zip(rows, orders, strict=True)
        ]
        kinds = {TEXT, IMAGE} if any(each.how == EITHER for each in orders) else {each.how for each in orders}
        settings = [self._kinds[each] for each in sorted(kinds)]
        routes = Routes.of((each.temperature, each.top_k, each.top_p) for each in settings)
        found: tuple[Tensor, Tensor] = self._drawn(
            self._draw_by_tables, routes, logits_SV, upload(told, self.device)
        )
        return found

    def _draw_by_tables(self, routes: Routes, logits_SV: Tensor, told_B6: Tensor) -> tuple[Tensor, Tensor]:
        assert self.automata is not None
        table_B, idle_B, row_B, forced_B, number_B, fresh_B = told_B6.unbind(1)
        look, table_B = self.automata.look(), table_B > 0
        going_B, idle_B = table_B & look.live_B, (idle_B > 0) | (table_B & ~look.live_B)
        allowed_BV = self.masks.rows_RV.index_select(0, row_B)
        allowed_BV = torch.where(going_B[:, None], look.allowed_BV, allowed_BV)
        behind_B = torch.where(look.forced_B < 0, self._pad, look.forced_B)
        forced_B = torch.where(table_B, behind_B, forced_B)
        number_B = torch.where(going_B, look.number_B, number_B).clamp(max=self.uniforms_BN.shape[1] - 1)
        heat_2, top_k_2, top_p_2 = self._ways_2
        codes_B = (going_B & look.codes_B).long()
        ways = heat_2[codes_B], top_k_2[codes_B], top_p_2[codes_B]
        ids_B, chosen_B = self._draw_of(routes, logits_SV, allowed_BV, number_B, fresh_B, ways, idle_B)
        self.automata.advance(ids_B, going_B)
        return torch.where(idle_B, forced_B, ids_B), chosen_B

    def _draw(
        self,
        setting: tuple[Routes, bool],
        logits_SV: Tensor,
        told_B4: Tensor,
        temperature_B: Tensor,
        top_k_B: Tensor,
        top_p_B: Tensor,
        idle_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        routes, some_idle = setting
        row_B, forced_B, number_B, fresh_B = told_B4.unbind(1)
        allowed_BV, ways = self.masks.rows_RV.index_select(0, row_B), (temperature_B, top_k_B, top_p_B)
        ids_B, chosen_B = self._draw_of(routes, logits_SV, allowed_BV, number_B, fresh_B, ways, idle_B)
        return torch.where(idle_B, forced_B, ids_B) if some_idle else ids_B, chosen_B

    def _draw_of(
        self,
        routes: Routes,
        logits_SV: Tensor,
        allowed_BV: Tensor,
        number_B: Tensor,
        fresh_B: Tensor,
        ways: tuple[Tensor, Tensor, Tensor],
        idle_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Ids (B,) and their log-probabilities (B,), of idle places too."""
        logits_KBV = logits_SV.view(self.count, self.places, -1)
        scores_BV = combine(logits_KBV, allowed_BV, self.config)
        if self.config.eoss_bias:
            scores_BV = scores_BV + self.bias_V
        if self.config.repetition_penalty != 1:
            self.seen_BV.logical_and_((fresh_B == 0)[:, None])
            scores_BV = penalize(scores_BV, self.seen_BV, self.config.repetition_penalty)
        uniform_B = self.uniforms_BN.gather(1, number_B[:, None])[:, 0]
        ids_B = draw(scores_BV, uniform_B, *ways, routes)
        chosen_B = logits_KBV[0].log_softmax(-1).gather(-1, ids_B[:, None])[:, 0]
        if self.config.repetition_penalty != 1:
            self._see(ids_B, idle_B)
        return ids_B, chosen_B

    def _see(self, ids_B: Tensor, idle_B: Tensor) -> None:
        text_B = ~idle_B & (ids_B >= self.text.start) & (ids_B < self.text.stop)
        was_B1 = self.seen_BV.gather(1, ids_B[:, None])
        self.seen_BV.scatter_(1, ids_B[:, None], was_B1 | text_B[:, None])
