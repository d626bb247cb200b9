"""Metrics of a step: numbers, means with their counts, and sums that are still on a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Mean(float):
    """A mean with its count, so that the mean over all shares can be computed from those of each."""

    count: float

    def __new__(cls, value: float, count: float = 1.0) -> Mean:
        """A mean of `count` values."""
        made = super().__new__(cls, value)
        made.count = count
        return made


@dataclass(frozen=True, slots=True)
class Sums:
    """A mean whose total is still on a device: reading it waits for the device, so the loop reads few.

    A task that has such figures has those of the same names in every share.
    """

    total: Tensor
    count: float | Tensor


Figure = float | Tensor | Sums


def sums_by_kind(values_N: Tensor, kinds_N: Tensor, names: Sequence[str]) -> dict[str, Figure]:
    """Sums of values by their kind, by name; `kinds_N`, on the CPU, has the place of each one's name, or -1."""
    counts = torch.bincount(kinds_N[kinds_N >= 0], minlength=len(names)).tolist()
    there_N = kinds_N.to(values_N.device, non_blocking=True)
    kinds_K1 = torch.arange(len(names), device=values_N.device)[:, None]
    totals_K = torch.where(there_N == kinds_K1, values_N, 0.0).sum(1)
    return {name: Sums(totals_K[place], float(counts[place])) for place, name in enumerate(names)}


class Figures(Mapping[str, float]):
    """Metrics of a step; those on a device are read at the first access to one of them.

    `whole` has what is known already, `found` the figures of each share with its part of the rows.
    """

    def __init__(
        self, whole: Mapping[str, float], found: Iterable[tuple[float, Mapping[str, Figure]]]
    ) -> None:
        self._known = dict(whole)
        self._found = list(found)

    def __getitem__(self, name: str) -> float:
        if name not in self._known and any(name in figures for _, figures in self._found):
            self._read()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def _read(self) -> dict[str, float]:
        found, self._found = self._found, []
        if found:
            self._known |= pooled(read(found))
        return self._known


def read(found: Sequence[tuple[float, Mapping[str, Figure]]]) -> list[tuple[float, dict[str, float]]]:
    """The same figures as numbers, fetched from the device at once; a mean of nothing is left out."""
    pairs = [
        (name, *_pair(each, part)) for part, figures in found for name, each in figures.items()
        if not isinstance(each, float | int)
    ]  # fmt: skip
    values = iter(_fetched([each for _, *pair in pairs for each in pair]))
    out = []
    for part, figures in found:
        mine: dict[str, float] = {}
        for name, each in figures.items():
            if isinstance(each, float | int):
                mine[name] = each
                continue
            total, count = next(values), next(values)
            if count:
                mine[name] = Mean(total / count, count)
        out.append((part, mine))
    return out


def _fetched(numbers: Sequence[float | Tensor]) -> list[float]:
    tensors = [each for each in numbers if isinstance(each, Tensor)]
    values = iter(torch.stack([each.detach().reshape(()) for each in tensors]).tolist() if tensors else ())
    return [next(values) if isinstance(each, Tensor) else each for each in numbers]


def _pair(figure: Figure, part: float) -> tuple[float | Tensor, float | Tensor]:
    """A figure as what it adds to a total, and to what divides that."""
    if isinstance(figure, Sums):
        return figure.total, figure.count
    weight = figure.count if isinstance(figure, Mean) else part
    return figure * weight, weight


def summed(
    loss: Tensor, asked: bool, found: Sequence[tuple[float, Mapping[str, Figure]]]
) -> tuple[Tensor, Tensor, dict[str, Figure]]:
    """Losses, how many processes were asked to stop, and figures with some `Sums`, added up over all processes.

    They go as one vector, asynchronously; every process has to call this.
    """
    names = list(dict.fromkeys(name for _, figures in found for name in figures))
    zero = torch.zeros((), dtype=loss.dtype, device=loss.device)
    pairs = {name: (zero, zero) for name in names}
    for part, figures in found:
        for name, each in figures.items():
            total, count = _pair(each, part)
            pairs[name] = pairs[name][0] + total, pairs[name][1] + count
    vector = torch.stack([loss, zero + float(asked), *(each for pair in pairs.values() for each in pair)])
    torch.distributed.all_reduce(vector)
    return vector[0], vector[1], {
        name: Sums(vector[2 + 2 * place], vector[3 + 2 * place]) for place, name in enumerate(names)
    }  # fmt: skip


def pooled(found: Iterable[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Figures of the whole batch, from (part of the rows, figures) of each share; exact for every `Mean`."""
    given = list(found)
    if len(given) == 1:
        return dict(given[0][1])
    sums: dict[str, tuple[float, float]] = {}
    for part, figures in given:
        for name, value in figures.items():
            weight = value.count if isinstance(value, Mean) else part
            total, count = sums.get(name, (0.0, 0.0))
            sums[name] = (total + weight * value, count + weight)
    return {name: total / count for name, (total, count) in sums.items()}
