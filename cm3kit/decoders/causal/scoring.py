"""How likely given answers are to a causal model: one prefill for all answers to a canvas, and the rest in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.cached_forward import Passes, copies
from cm3kit.decoders.past import Past
from cm3kit.decoders.scoring import Scored, answered
from cm3kit.types import Canvas, Fill
from cm3kit_tokenizers.errors import ConfigError

ROWS, LOGITS = 64, 1 << 25
"""Most answers of one pass, and about how many logits may be in memory."""
_Found = list[tuple[float, bool]]
"""log p of each scored id, and whether none is likelier there."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One canvas: what stands before the first answer, and what follows, of which some ids are scored."""

    prompt: tuple[int, ...]
    prefix: int
    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    counts: tuple[int, ...]

    @staticmethod
    def of(canvas: Canvas) -> _Row:
        """Answers one after the other, each behind its lead, as the causal decoder writes them."""
        spans, ids, scored = answered(canvas), list[int](), list[bool]()
        counts: list[int] = []
        for number, span in enumerate(spans):
            if number:
                # An end that the next lead starts with is written once.
                end, lead = spans[number - 1].end, span.lead
                closed = not spans[number - 1].exact
                forced = lead if lead[:1] == (end,) else (end or 0, *lead)
                forced = forced[1:] if closed else forced
                ids += forced
                scored += [False] * len(forced)
            written = [*(span.answer or ()), *([] if span.exact else [span.end or 0])]
            ids += written
            scored += [True] * len(written)
            counts.append(len(written))
        prefix = len(canvas.ids) if canvas.prompt_attention == "full" else 0
        return _Row((*canvas.ids, *spans[0].lead), prefix, tuple(ids), tuple(scored), tuple(counts))


def score_causal(passes: Passes, canvases: Sequence[Canvas], window: int) -> list[Scored]:
    """log p of the answers of each canvas, the ids from left to right.

    Args:
        passes: the model; unshifted.
        window: most positions of a row.

    Raises:
        ConfigError: an answer has a wrong length (`bad_value`), or a row is longer than the window (`too_long`).
    """
    rows = [_Row.of(canvas) for canvas in canvases]
    for row in rows:
        if len(row.prompt) + len(row.ids) - 1 > window:
            raise ConfigError(
                f"the page and the answer take {len(row.prompt) + len(row.ids)} ids, the model's window holds {window};"
                " shorten the page or the answer.",
                code="too_long",
            )
    groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault((row.prompt, row.prefix), []).append(number)
    found: dict[int, _Found] = {}
    for numbers in groups.values():
        found |= _score_group(passes, {number: rows[number] for number in numbers})
    return [_scored(canvas, rows[number], found[number]) for number, canvas in enumerate(canvases)]


def _scored(canvas: Canvas, row: _Row, found: _Found) -> Scored:
    logprobs, greedy = [each for each, _ in found], all(best for _, best in found)
    fills, at = [], 0
    for span, count in zip(answered(canvas), row.counts, strict=True):
        fills.append(Fill(span.answer or (), tuple(logprobs[at : at + count]), True))
        at += count
    return Scored(sum(logprobs), tuple(fills), greedy=greedy)


def _score_group(passes: Passes, rows: dict[int, _Row]) -> dict[int, _Found]:
    """Log-probabilities of the scored ids of rows that share their prompt."""
    first = next(iter(rows.values()))
    past = passes.past()
    prompt_1P, size = torch.tensor([first.prompt]), len(first.prompt)
    hidden_1PD = passes.follow(prompt_1P, past, first.prefix)
    (first_1V,) = passes.read(hidden_1PD, 0, None, [torch.tensor([size - 1])])
    first_V = first_1V[0].log_softmax(-1).double().cpu()
    found: dict[int, _Found] = {}
    # Rows of like lengths share a pass, so that little of it is padding.
    ordered = sorted(rows, key=lambda number: len(rows[number].ids))
    vocab = len(first_V)
    while ordered:
        count = min(ROWS, len(ordered))
        while count > 1 and sum(len(rows[number].ids) for number in ordered[:count]) * vocab > LOGITS:
            count //= 2
        found |= _score_rows(passes, {number: rows[number] for number in ordered[:count]}, past, first_V)
        ordered = ordered[count:]
    return found


def _score_rows(passes: Passes, rows: dict[int, _Row], past: Past, first_V: Tensor) -> dict[int, _Found]:
    size, width = past.get_seq_length(), max(len(row.ids) for row in rows.values()) - 1
    best = int(first_V.argmax())
    found = {
        number: [(float(first_V[row.ids[0]]), row.ids[0] == best)] if row.scored[0] else []
        for number, row in rows.items()
    }
    if not width:
        return found
    ids_RW = torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows.values()):
        ids_RW[place, : len(row.ids) - 1] = torch.tensor(row.ids[:-1])
    hidden_RWD = passes.follow(ids_RW, copies(past, len(rows)))
    # What follows an id is read where that id stands.
    asked = [[at - 1 for at, on in enumerate(row.scored) if on and at] for row in rows.values()]
    # One of a single id is read off the prompt alone.
    slots = [torch.tensor(each, dtype=torch.long) + size for each in asked]
    logits = passes.read(hidden_RWD, size, None, slots)
    for (number, row), places, logits_MV in zip(rows.items(), asked, logits, strict=True):
        target_M1 = torch.tensor([row.ids[place + 1] for place in places], dtype=torch.long)[:, None]
        chosen_M = logits_MV.log_softmax(-1).cpu().gather(-1, target_M1)[:, 0]
        best_M = logits_MV.argmax(-1).cpu() == target_M1[:, 0]
        found[number] += list(zip(chosen_M.double().tolist(), best_M.tolist(), strict=True))
    return found
