"""Where rows stand in their constraints, on the device that draws: ids that it has drawn need not be read to go on.

A row that ends a span goes on by the id that is forced then, if there is one, and waits for the host behind that.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from cm3kit.decoders.causal.jobs import Job
from cm3kit.decoders.grammar.html_table import HtmlTable
from cm3kit.decoders.grammar.tables import (
    CLOSES,
    CONTENT_AGAIN,
    DEEPER,
    LINKS,
    MAX_DEPTH,
    MOST_CLASSES,
    MOST_STATES,
    NEVER,
    Start,
    Table,
)
from cm3kit.decoders.transfer import put, upload

MOST_TABLES = 32
"""Constraints whose tables lie on the device at once, in `MOST_STATES` states all together."""


class _At(IntEnum):
    """The numbers of a row; those of its open elements follow."""

    STATE = 0
    LEFT = 1
    NUMBER = 2
    DEPTH = 3
    WRITTEN = 4
    EXACT = 5
    LINKED = 6
    AROUND = 7
    CONTENT = 8
    TABLE = 9
    FIRST = 10
    SECOND = 11
    CUT = 12
    OVER = 13
    FORCED = 14


class Look(NamedTuple):
    """What rows may draw next.

    Attributes:
        live_B: bool, whether a row is inside its span; if not, `forced_B` follows, or nothing (-1).
        allowed_BV: ids that may come.
        number_B: index of the row's next number in [0, 1).
        codes_B: bool, whether the next id is an image code.
    """

    live_B: Tensor
    forced_B: Tensor
    allowed_BV: Tensor
    number_B: Tensor
    codes_B: Tensor


class Automata:
    """Rows in tables, `Table` after `Table` in one tensor: a state is its number in its own and where that one begins.

    Args:
        html: the table that is always there.
        places: rows.

    Attributes:
        refused: spans that had no table, or none that there was room for.
    """

    def __init__(self, html: HtmlTable, places: int, device: torch.device) -> None:
        table = html.table
        self.html, self.device, self.refused = html, device, 0
        self._vocab, self._link = len(table.class_V), table.link
        self._classes = max(table.after_SC.shape[1], MOST_CLASSES) + 1
        states = len(table.after_SC) + MOST_STATES
        self._moves = torch.zeros(states * self._classes, 2, dtype=torch.int32, device=device)
        self._needs_SC = torch.empty(states, self._classes, dtype=torch.int32, device=device)
        self._bars_SC = torch.zeros(states, self._classes, dtype=torch.uint8, device=device)
        self._flags_S3 = torch.zeros(states, 3, dtype=torch.bool, device=device)
        self._class_RV = torch.zeros(MOST_TABLES, self._vocab, dtype=torch.int32, device=device)
        self._ends_BV = torch.zeros(places, self._vocab, dtype=torch.bool, device=device)
        self._rows_BF = torch.zeros(places, len(_At) + MAX_DEPTH, dtype=torch.int64, device=device)
        self._depth_D = torch.arange(MAX_DEPTH, device=device)
        self._of: dict[int, Table] = {}
        self._known: dict[Table, tuple[int, int]] = {}
        self._filled = 0
        self._forget()

    def begin(self, jobs: Mapping[int, Job]) -> dict[int, bool]:
        """Put rows in their places before the spans that they are to begin; which of the places have a table."""
        rows: dict[int, list[int]] = {}
        for place, job in jobs.items():
            self._of.pop(place, None)
            start = job.run.start(self.html)
            if start is None or not self._hold(start.table):
                self.refused += 1
                continue
            self._of[place] = start.table
            rows[place] = self._row(start, job)
            ends_V = torch.zeros(self._vocab, dtype=torch.bool)
            ends_V[[job.run.end, *job.run.others]] = True
            put(self._ends_BV[place], ends_V)
        if rows:
            self._rows_BF.index_copy_(0, upload([*rows], self.device), upload([*rows.values()], self.device))
        return {place: place in rows for place in jobs}

    def _row(self, start: Start, job: Job) -> list[int]:
        table, first = self._known[start.table]
        lead = [*(job.lead or ()), -1, -1][:2]
        cut = -1 if job.lead is None else job.run.end
        row = [
            first + start.state,
            job.left,
            job.drawn,
            len(start.stack),
            start.written,
            start.exact,
            start.linked,
        ]
        row += [start.around, first + start.content, table, *lead, cut, 0, -1]
        return [*row, *start.stack, *[0] * (MAX_DEPTH - len(start.stack))]

    def look(self) -> Look:
        """What rows may draw; nothing is read."""
        rows = self._rows_BF
        state_B, depth_B, left_B = rows[:, _At.STATE], rows[:, _At.DEPTH], rows[:, _At.LEFT]
        bar_B = (depth_B >= MAX_DEPTH) * DEEPER + (depth_B == 0) * CLOSES + rows[:, _At.LINKED] * LINKS
        needs_BC, bars_BC = (each.index_select(0, state_B) for each in (self._needs_SC, self._bars_SC))
        fits_BC = (needs_BC + depth_B[:, None] < left_B[:, None]) & ((bars_BC & bar_B[:, None]) == 0)
        class_BV = self._class_RV.index_select(0, rows[:, _At.TABLE])
        final_B, _, codes_B = self._flags_S3.index_select(0, state_B).unbind(1)
        may_end_B = final_B & (depth_B == 0) & (rows[:, _At.WRITTEN] > 0) & (rows[:, _At.EXACT] == 0)
        may_end_B = may_end_B | ~fits_BC.any(1)
        allowed_BV = fits_BC.gather(1, class_BV.long()) | (self._ends_BV & may_end_B[:, None])
        live_B, forced_B = rows[:, _At.OVER] == 0, rows[:, _At.FORCED]
        return Look(live_B, forced_B, allowed_BV, rows[:, _At.NUMBER], codes_B)

    def advance(self, ids_B: Tensor, going_B: Tensor) -> None:
        """Go on by an id each where a row is going; nothing is read."""
        rows, ids_B1 = self._rows_BF, ids_B[:, None]
        class_B = self._class_RV.view(-1).index_select(0, rows[:, _At.TABLE] * self._vocab + ids_B)
        cell_B = rows[:, _At.STATE] * self._classes + class_B
        after_B, push_B = self._moves.index_select(0, cell_B).long().unbind(1)
        stack_BD, depth_B, top_B, linked_B = self._pushed(push_B)
        again_B = after_B == CONTENT_AGAIN
        state_B = torch.where(again_B, rows[:, _At.CONTENT] + top_B, after_B).clamp(min=0)
        left_B, ended_B = rows[:, _At.LEFT] - 1, self._ends_BV.gather(1, ids_B1)[:, 0]
        # What is cut and could be no longer is asked for its end.
        told_B = self._flags_S3.index_select(0, state_B)[:, 1] & (rows[:, _At.EXACT] == 0)
        over_B = ended_B | ((left_B == 0) & ~told_B)
        first_B, second_B = rows[:, _At.FIRST], rows[:, _At.SECOND]
        behind_B = torch.where(ids_B == first_B, second_B, first_B)
        forced_B = torch.where(ended_B, behind_B, rows[:, _At.CUT])
        new = [
            state_B,
            left_B,
            rows[:, _At.NUMBER] + 1,
            depth_B,
            torch.ones_like(left_B),
            rows[:, _At.EXACT],
            linked_B,
        ]
        kept = rows[:, _At.AROUND : _At.OVER]
        new_BF = torch.cat([torch.stack(new, 1), kept, over_B[:, None], forced_B[:, None], stack_BD], 1)
        rows.copy_(torch.where(going_B[:, None], new_BF, rows))

    def _pushed(self, push_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Open elements after these are opened and closed, their number, the innermost, and whether a link is open."""
        rows = self._rows_BF
        stack_BD, depth_B, around_B = rows[:, len(_At) :], rows[:, _At.DEPTH], rows[:, _At.AROUND]
        opens_B, closes_B = push_B > 0, push_B < 0
        closed_B = closes_B & (_top(stack_BD, depth_B, around_B) == self._link)
        linked_B = torch.where(closed_B, 0, torch.where(push_B == self._link, 1, rows[:, _At.LINKED]))
        opened_BD = (self._depth_D == depth_B[:, None]) & opens_B[:, None]
        stack_BD = torch.where(opened_BD, push_B[:, None], stack_BD)
        depth_B = depth_B + opens_B.long() - closes_B.long()
        return stack_BD, depth_B, _top(stack_BD, depth_B, around_B), linked_B

    def _hold(self, table: Table) -> bool:
        """Have a table lie on the device; False where there is no room beside those that places stand in."""
        if table in self._known:
            return True
        states, classes = table.after_SC.shape
        if not self._fits(states) and not {*self._of.values()} - {self.html.table}:
            self._forget()
        if not self._fits(states):
            return False
        number, first = len(self._known), self._filled
        self._known[table], self._filled = (number, first), first + states
        after_SC = torch.where(table.after_SC >= 0, table.after_SC + first, table.after_SC)
        moves_SC2 = torch.stack([after_SC, table.push_SC], -1).int()
        where = slice(first, self._filled)
        put(self._moves.view(-1, self._classes, 2)[where, :classes], moves_SC2)
        put(self._needs_SC[where, :classes], table.need_SC.int())
        put(self._bars_SC[where, :classes], table.bar_SC.to(torch.uint8))
        put(self._flags_S3[where], torch.stack([table.final_S, table.cut_S, table.codes_S], 1))
        # Behind all classes is one of what may stand nowhere.
        class_V = table.class_V.masked_fill(table.class_V == classes, self._classes - 1)
        put(self._class_RV[number], class_V.int())
        return True

    def _fits(self, states: int) -> bool:
        return len(self._known) < MOST_TABLES and self._filled + states <= len(self._needs_SC)

    def _forget(self) -> None:
        self._known.clear()
        self._filled = 0
        self._needs_SC.fill_(NEVER)
        self._hold(self.html.table)


def _top(stack_BD: Tensor, depth_B: Tensor, around_B: Tensor) -> Tensor:
    """The innermost open element of each row, its own or one around it."""
    own_B = stack_BD.gather(1, (depth_B - 1).clamp(min=0)[:, None])[:, 0]
    return torch.where(depth_B > 0, own_B, around_B)
