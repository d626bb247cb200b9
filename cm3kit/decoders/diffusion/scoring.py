"""How likely given answers are to a masked-diffusion model.

Writing one id at a pass from left to right is a process whose probabilities multiply, so a sum of log-probabilities
is exact for it: that is how models are scored that were trained block by block. Models that look both ways are asked
for a bound that holds whatever the order: the mean over random orders of the same sum (arXiv:2310.02031, eq. 4),
estimated with random masks as LLaDA does (arXiv:2502.09992, eq. 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import TypeVar

import torch

from cm3kit.decoders.diffusion.blocks import Blocks, blocks_of
from cm3kit.decoders.diffusion.denoiser import Ask, Denoiser, Sharing
from cm3kit.decoders.diffusion.settings import EXACT, DiffusionConfig
from cm3kit.decoders.scoring import Method, Scored, answered
from cm3kit.decoders.transfer import upload, workable
from cm3kit.rng import generator
from cm3kit.types import Canvas, Fill

ROWS = 32
Report = Callable[[int, int], None]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Target:
    """What is asked of one canvas.

    Attributes:
        ids: the flat canvas, masked.
        slots: places of the answers' ids and their ends, ascending, with the ids at them.
        written: ids by slot.
        behind: for the last slot of an answer those that hold `eoss` once it is written.
        blocks: into which the canvas is cut.
        open: masked positions, ascending, those of gaps that are not answered too.
    """

    ids: tuple[int, ...]
    slots: tuple[int, ...]
    written: dict[int, int]
    behind: dict[int, range]
    blocks: Blocks
    open: tuple[int, ...]

    @staticmethod
    def of(canvas: Canvas, mask: int, eoss: int, config: DiffusionConfig) -> _Target:
        """The answers of a canvas, each with its end where it has room."""
        answered(canvas)
        flat, written = canvas.flatten(mask), dict[int, int]()
        behind: dict[int, range] = {}
        for span, where in zip(canvas.spans, flat.ranges, strict=True):
            if span.answer is None:
                continue
            ended = not span.exact and len(span.answer) < len(where)
            ids = (*span.answer, *((eoss,) if ended else ()))
            written |= dict(zip(where, ids, strict=False))
            if ended:
                behind[where.start + len(ids) - 1] = range(where.start + len(ids), where.stop)
        slots = tuple(sorted(written))
        opened = tuple(slot for each in flat.ranges for slot in each)
        return _Target(flat.ids, slots, written, behind, blocks_of(flat, config), opened)

    def id(self, count: int) -> int:
        """The id of the slot behind so many."""
        return self.written[self.slots[count]]

    def upto(self, count: int) -> list[int]:
        """The canvas with the first `count` slots written."""
        ids = list(self.ids)
        for slot in self.slots[:count]:
            ids[slot] = self.written[slot]
            for rest in self.behind.get(slot, ()):
                ids[rest] = self.written[slot]
        return ids


def score_left_to_right(
    denoiser: Denoiser,
    canvases: Sequence[Canvas],
    config: DiffusionConfig,
    *,
    eoss: int,
    method: Method,
    report: Report = lambda done, total: None,
) -> list[Scored]:
    """log p of the answers, one id at a pass from left to right; beginnings that answers share are asked once.

    Args:
        method: how the result is named.
    """
    targets = [_Target.of(canvas, denoiser.mask, eoss, config) for canvas in canvases]
    states: dict[tuple[int, ...], tuple[_Target, int, list[tuple[int, int]]]] = {}
    for number, target in enumerate(targets):
        for count in range(len(target.slots)):
            key = (*target.upto(count), target.slots[count])
            states.setdefault(key, (target, count, []))[2].append((number, count))
    found = [[0.0] * len(target.slots) for target in targets]
    best = [True] * len(targets)
    # What a pass computes once is what stands before the block; in this order a cache has least to compute anew.
    begun = {key: _begun(target, count, config) for key, (target, count, _) in states.items()}
    ordered = [(begun[key], *states[key]) for key in sorted(states, key=lambda key: (begun[key], key))]
    for done, batch in _batches(ordered, ROWS, lambda each: each[0]):
        report(done, len(ordered))
        asked = [_question(target, count, config) for _, target, count, _ in batch]
        ids = [
            [targets[number].written[targets[number].slots[count]] for number, count in users]
            for *_, users in batch
        ]
        answers = _ask(denoiser, asked, [[(0, id) for id in row] for row in ids])
        for (*_, users), row, (logprobs, top) in zip(batch, ids, answers, strict=True):
            for (number, count), id, logprob in zip(users, row, logprobs, strict=True):
                found[number][count] = logprob
                best[number] &= top[0] == id
    report(len(ordered), len(ordered))
    return [
        _by_id(canvas, logprobs, method, greedy)
        for canvas, logprobs, greedy in zip(canvases, found, best, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Question:
    ids: list[int]
    slots: tuple[int, ...]
    time: float
    block: tuple[int, int] | None


def _window(target: _Target, count: int, config: DiffusionConfig) -> tuple[int, int] | None:
    return target.blocks.around(target.slots[count]) if config.cache in EXACT else None


def _begun(target: _Target, count: int, config: DiffusionConfig) -> tuple[int, ...]:
    """Length and window of a row and what stands before it; nothing where there are no windows."""
    window = _window(target, count, config)
    return () if window is None else (len(target.ids), *window, *target.upto(count)[: window[0]])


def _question(target: _Target, count: int, config: DiffusionConfig) -> _Question:
    ids, slot, window = target.upto(count), target.slots[count], _window(target, count, config)
    slots = target.open if window is None else [each for each in target.open if each in range(*window)]
    left = sum(ids[each] == target.ids[each] for each in slots)
    return _Question(ids, (slot,), left / len(slots), window)


def score_bound(
    denoiser: Denoiser,
    canvases: Sequence[Canvas],
    config: DiffusionConfig,
    *,
    eoss: int,
    rounds: int,
    report: Report = lambda done, total: None,
) -> list[Scored]:
    """A lower bound of log p of the answers, with its standard error.

    All masks are taken where they are no more than `rounds`; then nothing is estimated. Answers of one length on
    canvases of one seed are asked with the same masks.
    """
    targets = [_Target.of(canvas, denoiser.mask, eoss, config) for canvas in canvases]
    masks = [
        _masks(len(target.slots), rounds, canvas.seed)
        for target, canvas in zip(targets, canvases, strict=True)
    ]
    questions: dict[tuple[int, ...], _Question] = {}
    asked: list[list[tuple[int, ...]]] = []
    for target, (drawn, _) in zip(targets, masks, strict=True):
        asked.append([_masked(target, mask, questions) for mask in drawn])
    sums: dict[tuple[int, ...], float] = {}
    keys = sorted(questions, key=lambda key: len(questions[key].ids))
    for done, batch in _batches(keys, ROWS, lambda key: None):
        report(done, len(keys))
        truths = [[_truth(key, slot) for slot in questions[key].slots] for key in batch]
        found = _ask(denoiser, [questions[key] for key in batch], [list(enumerate(each)) for each in truths])
        for key, (logprobs, _) in zip(batch, found, strict=True):
            sums[key] = float(torch.tensor(logprobs, dtype=torch.float64).sum())
    report(len(keys), len(keys))
    return [
        _bound(canvas, [sums[key] for key in mine], len(target.slots), drawn)
        for canvas, target, mine, drawn in zip(canvases, targets, asked, masks, strict=True)
    ]


Masks = tuple[list[tuple[int, ...]], bool]
"""Which of n answer ids are hidden, mask by mask; and whether these are all masks that there are."""


def _masks(n: int, rounds: int, seed: int) -> Masks:
    if n < 30 and 2**n - 1 <= rounds:
        return [each for size in range(1, n + 1) for each in combinations(range(n), size)], True
    rng = generator(seed, n)
    # Sizes are spread evenly, so that every share of masks has its part in few rounds.
    offset = float(torch.rand((), generator=rng, dtype=torch.float64))
    drawn = []
    for number in range(rounds):
        size = min(n, 1 + int((number + offset) * n / rounds))
        drawn.append(tuple(sorted(torch.randperm(n, generator=rng)[:size].tolist())))
    return drawn, False


def _masked(
    target: _Target, mask: tuple[int, ...], questions: dict[tuple[int, ...], _Question]
) -> tuple[int, ...]:
    """Note a question; its key: the canvas, and behind it what the masked slots should hold."""
    ids, slots = list(target.ids), tuple(target.slots[place] for place in mask)
    for place, slot in enumerate(target.slots):
        if place not in mask:
            ids[slot] = target.written[slot]
    key = (*ids, -1, *(part for slot in slots for part in (slot, target.written[slot])))
    time = sum(ids[slot] == target.ids[slot] for slot in target.open) / len(target.open)
    questions.setdefault(key, _Question(ids, slots, time, None))
    return key


def _truth(key: tuple[int, ...], slot: int) -> int:
    behind = key[key.index(-1) + 1 :]
    return behind[2 * behind[::2].index(slot) + 1]


def _bound(canvas: Canvas, sums: list[float], n: int, masks: Masks) -> Scored:
    drawn, all_of_them = masks
    fills = tuple(Fill(span.answer or (), (), True) for span in answered(canvas))
    if all_of_them:
        # Each size from 1 to n has the same weight, and each mask of a size.
        value = sum(
            each / (len(mask) * math.comb(n, len(mask))) for each, mask in zip(sums, drawn, strict=True)
        )
        # One id is written in one order only.
        return Scored(value, fills, "exact" if n == 1 else "bound")
    estimates_R = torch.tensor(
        [n / len(mask) * each for each, mask in zip(sums, drawn, strict=True)], dtype=torch.float64
    )
    error = float(estimates_R.std() / len(estimates_R) ** 0.5) if len(estimates_R) > 1 else math.inf
    return Scored(float(estimates_R.mean()), fills, "bound", error)


def _by_id(canvas: Canvas, logprobs: list[float], method: Method, greedy: bool) -> Scored:
    fills, at = [], 0
    for span in answered(canvas):
        ids = span.answer or ()
        count = len(ids) + (not span.exact and len(ids) < span.max_tokens)
        fills.append(Fill(ids, tuple(logprobs[at : at + count]), True))
        at += count
    return Scored(sum(logprobs), tuple(fills), method, greedy=greedy)


def _batches(
    items: Sequence[Item], size: int, key: Callable[[Item], object]
) -> Iterator[tuple[int, list[Item]]]:
    """Items in order, at most `size` of one key at a time, and how many came before."""
    start = 0
    while start < len(items):
        stop = start + 1
        while stop < min(len(items), start + size) and key(items[stop]) == key(items[start]):
            stop += 1
        yield start, list(items[start:stop])
        start = stop


def _ask(
    denoiser: Denoiser, questions: Sequence[_Question], wanted: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[list[float], list[int]]]:
    """Of each question log-probabilities, and the likeliest id at each of its slots; no more leaves the model's device.

    Args:
        wanted: for each question which of its slots and which id. The mask has no probability (arXiv:2406.07524,
            sec. 3.2.3).
    """
    ids_BT = torch.zeros(len(questions), max(len(row.ids) for row in questions), dtype=torch.long)
    for place, row in enumerate(questions):
        ids_BT[place, : len(row.ids)] = torch.tensor(row.ids)
    lengths = tuple(len(row.ids) for row in questions)
    slots = tuple(torch.tensor(row.slots) for row in questions)
    ask = Ask(ids_BT, lengths, slots, tuple(row.time for row in questions), questions[0].block)
    if isinstance(denoiser, Sharing) and ask.block is not None:
        logits = denoiser.together(ask)
    else:
        logits = denoiser.logits(ask)
    parts = []
    for logits_MV, pairs in zip(logits, wanted, strict=True):
        logits_MV = workable(logits_MV).float().clone()
        logits_MV[:, denoiser.mask] = -torch.inf
        logp_MV, pairs_K2 = logits_MV.log_softmax(-1), upload(pairs, logits_MV.device)
        parts += [logp_MV[pairs_K2[:, 0], pairs_K2[:, 1]].double(), logp_MV.argmax(-1).double()]
    # Fp32 numbers and ids are exact in fp64, and one tensor is one copy.
    numbers = iter(torch.cat(parts).cpu().tolist())
    return [
        (list(islice(numbers, len(pairs))), [int(each) for each in islice(numbers, len(row.slots))])
        for row, pairs in zip(questions, wanted, strict=True)
    ]
