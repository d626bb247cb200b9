"""The logits of one pass, row by row where the model left them, read as if the slots of all rows were one list."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.guidance import mix
from cm3kit.decoders.transfer import upload

# Numbers that are worked on at once: on a CPU what its cache holds, elsewhere what keeps temporary memory small.
CHUNK = {"cpu": 1 << 18}
LARGE = 1 << 26


@dataclass(frozen=True, slots=True)
class Part:
    """Slots of one row.

    Attributes:
        logits_MV: of the model, on its device.
        guide_MV: those without the condition; None where nothing guides.
        weight: of the condition.
        at: which of the M slots are meant; None means all.
    """

    logits_MV: Tensor
    guide_MV: Tensor | None = None
    weight: float = 1.0
    at: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.logits_MV) if self.at is None else len(self.at)

    def of(self, at: Sequence[int]) -> Part:
        """Some of all slots."""
        same = len(at) == len(self.logits_MV)
        return self if same else Part(self.logits_MV, self.guide_MV, self.weight, tuple(at))

    def plain(self, index: range | Sequence[int]) -> Tensor:
        """Fp32 logits (K, V) of the model."""
        return self._rows(self.logits_MV, index)

    def mixed(self, index: range | Sequence[int]) -> Tensor:
        """The same after guidance."""
        logits_KV = self._rows(self.logits_MV, index)
        return (
            logits_KV
            if self.guide_MV is None
            else mix(logits_KV, self._rows(self.guide_MV, index), self.weight)
        )

    def _rows(self, logits_MV: Tensor, index: range | Sequence[int]) -> Tensor:
        if self.at is None and isinstance(index, range):
            return logits_MV[index.start : index.stop].float()
        at = index if self.at is None else [self.at[each] for each in index]
        return logits_MV.index_select(0, upload(list(at), logits_MV.device)).float()


class PassLogits:
    """N slots: those of all parts, one part after the other."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._starts = list(accumulate((len(part) for part in parts), initial=0))
        self.device, self.vocab_size = parts[0].logits_MV.device, parts[0].logits_MV.shape[1]

    def __len__(self) -> int:
        return self._starts[-1]

    def chunks(self, count: int | None = None) -> list[range]:
        """So many slots, or all, a few at a time."""
        count, size = len(self) if count is None else count, CHUNK.get(self.device.type, LARGE)
        step = max(1, size // self.vocab_size)
        return [range(start, min(count, start + step)) for start in range(0, count, step)]

    def mixed(self, slots: range | Sequence[int]) -> Tensor:
        """Fp32 logits (K, V) after guidance, not to be written to; slots ascend."""
        parts = [part.mixed(index) for part, index in self._split(slots)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def plain(self, slots: Sequence[int]) -> Tensor:
        """Fp32 logits (K, V) of the model itself, a copy; slots ascend."""
        return torch.cat([part.plain(index) for part, index in self._split(slots)])

    def _split(self, slots: range | Sequence[int]) -> Iterator[tuple[Part, range | Sequence[int]]]:
        """Of each part the slots that are meant, by their places in it."""
        stop = 0
        for part, (start, end) in zip(self._parts, pairwise(self._starts), strict=True):
            begin, stop = stop, bisect_left(slots, end, stop)
            if stop == begin:
                continue
            if isinstance(slots, range):
                yield part, range(slots[begin] - start, slots[stop - 1] + 1 - start)
            else:
                yield part, [slot - start for slot in slots[begin:stop]]
