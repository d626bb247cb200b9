"""The policy: views of episodes as rows of the model, and log-probabilities of what was written in them.

A row shows a view as the decoder showed it: all of it at once, left to right, or block by block. Blocks of one episode
share a row, each state of a block beside the clean copy that it looks back at, as in training
(`models.attention`), so that a whole trajectory is one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cm3kit.models.attention import block_mask
from cm3kit.models.backbone import head, hidden_states
from cm3kit.models.timestep import is_timed
from cm3kit.training.rl.episode import View
from cm3kit.training.rl.estimators import Plan

Spell = Callable[[list[int]], tuple[list[int], list[int]]]
"""What the model reads instead of a row, and where each id begins in it."""


@dataclass(slots=True)
class Row:
    """The rows that go through the model at once.

    Attributes:
        ids: with `blocks`, `noisy` and `places` of `models.attention`, and `times` of models that look at it.
        columns: where logits are read, for `targets`; `answers` are their numbers among all of a batch.
        weights: of these log-probabilities in the loss.
        expected: what they were in the pass that the weights are of.
    """

    ids: list[int]
    blocks: list[int]
    noisy: list[bool]
    places: list[int]
    times: list[float]
    columns: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """How the model is shown a view.

    Attributes:
        attention: `full`, `causal`, or `blocks`, where finished blocks are clean.
        shift: whether the id at a position is scored at the one before it.
        clean: positions of a block of the clean copy: 1 where that looks left id by id.
        most: ids of the longest row that several states share.
        spell: puts a row into the model's own spelling; None leaves it.
    """

    attention: Literal["full", "causal", "blocks"]
    shift: bool
    clean: int = 1
    most: int = 1024
    spell: Spell | None = None

    def rows(self, plans: Sequence[Plan], prefixes: Sequence[int]) -> list[Row]:
        """Rows of all views, with the number of each answer."""
        out: list[Row] = []
        count = 0
        for plan, prefix in zip(plans, prefixes, strict=True):
            numbered = []
            for view in plan.views:
                numbered.append((view, range(count, count + len(view.ids))))
                count += len(view.ids)
            if self.attention == "blocks":
                out += self._shared(numbered)
            else:
                out += [self._alone(view, answers, prefix) for view, answers in numbered]
        return out

    def _alone(self, view: View, answers: range, prefix: int) -> Row:
        ids, places = list(view.row), range(len(view.row))
        at = list(places)
        if self.spell is not None:
            ids, at = self.spell(ids)
        size = len(ids)
        full = self.attention == "full"
        blocks = [0] * size if full else [max(0, place - prefix + 1) for place in range(size)]
        row = Row(ids, blocks, [full] * size, list(range(size)), [view.time] * size)
        row.columns = [at[position] - self.shift for position in view.positions]
        row.targets, row.answers = list(view.ids), list(answers)
        return row

    def _shared(self, views: Sequence[tuple[View, range]]) -> Iterator[Row]:
        """Rows of states of blocks, as many in each as have room and look back at the same ids."""
        waiting = list(views)
        while waiting:
            # The view that looks back farthest has the clean copy of all that agree with it.
            base, _ = max(waiting, key=lambda each: _window(each[0])[0])
            before = base.row[: _window(base)[0]]
            taken, left, size = list[tuple[View, range]](), list[tuple[View, range]](), len(before)
            for view, answers in waiting:
                start, stop = _window(view)
                agrees = start <= len(before) and view.row[:start] == before[:start]
                if agrees and (view is base or size + stop - start <= max(self.most, 1)):
                    taken.append((view, answers))
                    size += stop - start
                else:
                    left.append((view, answers))
            yield self._together(before, taken)
            waiting = left

    def _together(self, before: Sequence[int], views: Sequence[tuple[View, range]]) -> Row:
        # Numbers of clean blocks are spread out, so that several states of a block lie between it and the one before.
        spread, clean = len(views) + 1, self.clean
        origin = _window(views[0][0])[0] % clean
        size = len(before)
        first = [(place - origin) // clean for place in range(size)]
        row = Row(
            list(before), [each * spread for each in first], [False] * size, list(range(size)), [0.0] * size
        )
        for number, (view, answers) in enumerate(views):
            start, stop = _window(view)
            offset = len(row.ids) - start
            row.ids += view.row[start:stop]
            row.blocks += [((start - origin) // clean) * spread - number] * (stop - start)
            row.noisy += [True] * (stop - start)
            row.places += range(start, stop)
            row.times += [view.time] * (stop - start)
            for position, id, answer in zip(view.positions, view.ids, answers, strict=True):
                # The first of a block is scored at the clean id before it.
                clean_one = self.shift and position == start
                row.columns.append(position - 1 if clean_one else position + offset - self.shift)
                row.targets.append(id)
                row.answers.append(answer)
        return row


def _window(view: View) -> tuple[int, int]:
    return view.window or (0, len(view.row))


def inputs(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, ...]:
    """What `Policy` takes: rows side by side, padded on the right, and where N answers are read.

    A batch without rows is one padding id, and nothing is read.
    """
    shape = max(1, len(rows)), max((len(row.ids) for row in rows), default=1)
    ids_BT, documents_BT, blocks_BT, places_BT = (torch.zeros(shape, dtype=torch.long) for _ in range(4))
    noisy_BT, times_BT = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for number, row in enumerate(rows):
        part = number, slice(len(row.ids))
        ids_BT[part], documents_BT[part] = torch.tensor(row.ids), 1
        blocks_BT[part], places_BT[part] = torch.tensor(row.blocks), torch.tensor(row.places)
        noisy_BT[part], times_BT[part] = torch.tensor(row.noisy), torch.tensor(row.times)
    numbers = [number for number, row in enumerate(rows) for _ in row.columns]
    columns = [column for row in rows for column in row.columns]
    targets = [target for row in rows for target in row.targets]
    read = (torch.tensor(each, dtype=torch.long) for each in (numbers, columns, targets))
    found = (ids_BT, documents_BT, blocks_BT, noisy_BT, places_BT, times_BT, *read)
    return tuple(each.to(device) for each in found)


class Policy(nn.Module):
    """The backbone behind one call, so that distributed wrappers see all of it.

    Args:
        mask: id that has no probability; None leaves all.
        vocab_size: ids that the softmax is over, from 0.
        unseen: whether masked positions are attended to by no other position.
    """

    def __init__(
        self, backbone: PreTrainedModel, mask: int | None, vocab_size: int, unseen: int | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._mask, self._vocab_size, self._unseen = mask, vocab_size, unseen

    def forward(
        self, ids_BT: Tensor, documents_BT: Tensor, blocks_BT: Tensor, noisy_BT: Tensor, places_BT: Tensor,
        times_BT: Tensor, rows_N: Tensor, columns_N: Tensor, targets_N: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Log-probability (N,) of each target and entropy (N,) of its distribution, in nats; the head is asked there
        alone.
        """
        unseen_BT = None if self._unseen is None else ids_BT == self._unseen
        mask_B1TT = block_mask(documents_BT, blocks_BT, noisy_BT, unseen_BT=unseen_BT)
        times = times_BT if is_timed(self.backbone) else None
        hidden_BTD = hidden_states(self.backbone, ids_BT, mask_B1TT, places_BT, times)
        logits_NV = head(self.backbone, hidden_BTD[rows_N, columns_N])[..., : self._vocab_size].float()
        if self._mask is not None:
            # The mask itself has probability 0, as in decoding (arXiv:2406.07524, sec. 3.2.3).
            mask_1 = torch.tensor([self._mask], device=logits_NV.device)
            logits_NV = logits_NV.index_fill(-1, mask_1, -torch.inf)
        logp_NV = logits_NV.log_softmax(-1)
        with torch.no_grad():
            kept_NV = logp_NV.detach()
            entropy_N = -(kept_NV.exp() * kept_NV.clamp_min(-1e4)).sum(-1)
        return logp_NV.gather(-1, targets_N[:, None])[:, 0], entropy_N

    def score(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """The same of rows, on their device."""
        out: tuple[Tensor, Tensor] = self(*inputs(rows, next(self.parameters()).device))
        return out
