"""Schedules: how many slots each step writes.

Every schedule takes the open slots of one row (or of one block of it) and the number of steps, and returns
counts that are at least 1 and sum to the slots. Where a published rule yields a step that writes nothing,
that step is left out: its forward pass would change nothing. More steps than slots write one slot each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from cm3kit.decoders.diffusion.axes import number, one_of, schedule
from cm3kit_tokenizers.errors import ConfigError


@schedule("uniform")
def uniform(blanks: int, steps: int) -> list[int]:
    """Equal shares; the first steps take what is left over (LLaDA, arXiv:2502.09992).

    Raises:
        ConfigError: `steps` is below 1 (`bad_config`), here and in every other schedule that reads it.
    """
    steps = _usable(blanks, steps)
    return [blanks // steps + (k < blanks % steps) for k in range(steps)] if steps else []


@schedule("cosine")
def cosine(blanks: int, steps: int, *, precision: Literal["exact", "fp32"] = "exact") -> list[int]:
    """Few slots first: floor(N cos(πr/2)) of N slots are still open at r, at least one less than before.

    MaskGIT (arXiv:2202.04200, sec. 3.2 and 3.3; Muse, aMUSEd, Show-o and MMaDA use it too). N counts the
    slots that were open at the start, so a half-given image is filled at the same pace.
    """
    exact = one_of("precision", precision, ("exact", "fp32")) == "exact"
    steps = _usable(blanks, steps)
    left, counts = blanks, []
    for step in range(1, steps + 1):
        share = math.cos(math.pi / 2 * step / steps) if exact else _cosine_fp32(step, steps)
        rest = math.floor(blanks * share) if step < steps else 0
        rest = min(rest, left - 1)
        counts.append(left - rest)
        left = rest
    return counts


@schedule("arccos")
def arccos(blanks: int, steps: int, *, rounding: Literal["remainder", "nearest"] = "remainder") -> list[int]:
    """Shares proportional to arccos(1 - j / (S - 1)), j = 0..S-1 (UniDisc, arXiv:2503.20853; MeDiM).

    By largest `remainder`, where a step without a slot takes one from the first of the fullest; or each to
    the `nearest` count above 0, and the last step pays, as released. Where these sum to more than there are,
    the last steps are left out, for counts must not be negative.
    """
    nearest = one_of("rounding", rounding, ("remainder", "nearest")) == "nearest"
    wanted, steps = steps, _usable(blanks, steps)
    if wanted > blanks:
        return [1] * blanks
    if steps < 2:
        return [blanks] * steps
    weights = [math.acos(1 - j / (steps - 1)) for j in range(steps)]
    if nearest:
        return _paid_last(blanks, [max(1, round(blanks * w / math.fsum(weights))) for w in weights])
    counts = _apportion(blanks, weights)
    for k in range(steps):
        if counts[k] == 0:
            fullest = counts.index(max(counts))
            counts[k], counts[fullest] = 1, counts[fullest] - 1
    return counts


@schedule("dream")
def dream(blanks: int, steps: int, *, eps: float = 1e-3) -> list[int]:
    """int(u (1 - t' / t)) of the u slots still open, t from 1 to eps in equal steps; the last takes the rest.

    Dream and DiffuCoder (arXiv:2506.20639), except that u is of one row: the mean over a batch makes a
    row's result depend on the other rows.
    """
    eps = number("eps", eps, 0.0, 1.0)
    wanted, steps = steps, _usable(blanks, steps)
    if wanted > blanks:
        return [1] * blanks
    times = [1 - (1 - eps) * k / steps for k in range(steps + 1)]
    left, counts = blanks, []
    for k in range(steps):
        count = left if k == steps - 1 else int(left * (1 - times[k + 1] / times[k]))
        counts.append(count)
        left -= count
    return [count for count in counts if count]


@schedule("ascending")
def ascending(blanks: int, steps: int, *, mode: Literal["clip", "paper"] = "clip") -> list[int]:
    """1, 2, 4, … slots (ascending step size, arXiv:2509.23924); `steps` is not read.

    `clip` ends with what is left after the last power that fits, in ceil(log2(N + 1)) steps. `paper` takes
    floor(log2 N) steps, and the last one all that the powers before it leave.
    """
    if one_of("mode", mode, ("clip", "paper")) == "paper":
        counts = [1 << k for k in range(max(1, blanks.bit_length() - 1) - 1)]
    else:
        counts = [1 << k for k in range((blanks + 1).bit_length() - 1)]
    rest = blanks - sum(counts)
    return [*counts, rest] if rest else counts


@schedule("explicit")
def explicit(blanks: int, steps: int, *, counts: Sequence[int] = ()) -> list[int]:
    """The counts that the user lists; zeros are left out, and `steps` is not read.

    Raises:
        ConfigError: an item is no count, or they do not sum to the slots (`bad_config`).
    """
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        raise ConfigError(
            f"option 'counts' is {counts!r}; give whole numbers, none below 0.", code="bad_config"
        )
    if sum(counts) != blanks:
        raise ConfigError(
            f"option 'counts' sums to {sum(counts)}, but {blanks} slots are open (in this block); "
            "make it sum to them.",
            code="bad_config",
        )
    return [count for count in counts if count]


def ascending_blocks(length: int, blocks: int) -> list[list[int]]:
    """Schedules of the blocks of an ascending schedule, left to right (the rule released with arXiv:2509.23924).

    The steps of `ascending(length, mode="paper")` are dealt out from the end: each block but the first is
    written in one step, and the first takes the small steps that remain. A block is as long as its schedules sum.

    Raises:
        ConfigError: there are more blocks than steps, or less than one (`bad_config`).
    """
    counts = ascending(length, 1, mode="paper")
    if not 1 <= blocks <= len(counts):
        raise ConfigError(
            f"{blocks} ascending blocks of {length} slots; give 1 to {len(counts)}, one for each step.",
            code="bad_config",
        )
    first = len(counts) - blocks + 1
    return [counts[:first], *([count] for count in counts[first:])]


def _usable(blanks: int, steps: int) -> int:
    if steps < 1:
        raise ConfigError(f"steps is {steps}; give at least 1.", code="bad_config")
    return min(blanks, steps)


def _cosine_fp32(step: int, steps: int) -> float:
    ratio = torch.tensor(step, dtype=torch.float32) / steps
    return float(torch.cos(math.pi / 2 * ratio))


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole shares of `total` by largest remainder; among equal remainders the later share grows."""
    scale = total / math.fsum(weights)
    counts = [math.floor(weight * scale) for weight in weights]
    by_remainder = sorted(
        range(len(weights)), key=lambda j: (weights[j] * scale - counts[j], j), reverse=True
    )
    for j in by_remainder[: total - sum(counts)]:
        counts[j] += 1
    return counts


def _paid_last(total: int, counts: Sequence[int]) -> list[int]:
    """The counts as long as anything is left, and at the end whatever is."""
    taken: list[int] = []
    for count in counts[:-1]:
        taken.append(min(count, total - sum(taken)))
    return [count for count in (*taken, total - sum(taken)) if count]
