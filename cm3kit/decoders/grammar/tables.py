"""Automata as tables: where a device decodes, a step of one is a few look-ups, and no id has to be read for it.

A state and a class of ids give the state after, what that does to the stack of open elements, and how many further ids
it requires at least. Sets of words have no stack; pages have one, whose top says where to go on behind an element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3kit.decoders.grammar.html_state import MAX_DEPTH as MAX_DEPTH

NEVER = 1 << 30
"""What an id costs that may not follow."""
MOST_STATES, MOST_CLASSES = 2048, 256
"""Of the table of a set of words."""
NOWHERE, CONTENT_AGAIN = -1, -2
"""No state; and that of the content of the element that is then the top of the stack."""
DEEPER, CLOSES, LINKS = 1, 2, 4
"""What bars an id: a full stack, one without an element, and a link around."""


@dataclass(frozen=True, eq=False)
class Table:
    """S states and C classes of ids.

    Attributes:
        class_V: class of each id; C for those that may stand nowhere.
        after_SC: state after an id, `NOWHERE` or `CONTENT_AGAIN`.
        push_SC: number of the element that it opens, -1 where it closes one, else 0.
        need_SC: the budget has to be larger than this and the open elements together; `NEVER` where it may not follow.
        bar_SC: what bars it, as bits.
        final_S: where an answer may end if nothing is open.
        cut_S: where an answer whose budget is spent has to be told to end, as it could be no longer.
        codes_S: where codes of pictures follow.
        link: number of the element that may not stand in itself.
    """

    class_V: Tensor
    after_SC: Tensor
    push_SC: Tensor
    need_SC: Tensor
    bar_SC: Tensor
    final_S: Tensor
    cut_S: Tensor
    codes_S: Tensor
    link: int = -1

    @staticmethod
    def flat(class_V: Tensor, after_SC: Tensor, need_SC: Tensor, final_S: Tensor, cut_S: Tensor) -> Table:
        """A table without a stack."""
        none_SC, never_S = torch.zeros_like(after_SC), torch.zeros_like(final_S)
        return Table(class_V, after_SC, none_SC, need_SC, none_SC, final_S, cut_S, never_S)


@dataclass(frozen=True)
class Start:
    """Where a run starts in a table.

    Attributes:
        state: number of the state.
        exact: whether the run has a fixed length, and no end.
        written: whether it holds anything, as what is empty may not end.
        content: the first of the states of content that it goes back to.
        stack: numbers of the elements that it has to close, at most `MAX_DEPTH`.
        around: number of the innermost element around it; 0 is none.
        linked: whether a link is around it, or among its elements.
    """

    table: Table
    state: int
    exact: bool
    written: bool = True
    content: int = 0
    stack: Sequence[int] = ()
    around: int = 0
    linked: bool = False
