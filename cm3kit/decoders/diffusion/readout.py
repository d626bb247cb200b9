"""What a pass says, as numbers on the host: a pick for each slot of all rows, and statistics of the distributions.

All that is as wide as the vocabulary is computed where the logits are, for all rows at once, and its results come to
the host in one copy: a host that read slot by slot would have a GPU wait for it at each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.drawing import draw_each, drawn_from, way_of, ways_of
from cm3kit.decoders.diffusion.mask_table import MaskTable
from cm3kit.decoders.diffusion.pass_logits import Part, PassLogits
from cm3kit.decoders.diffusion.scores import Statistic
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.decoders.token_sampling import draw
from cm3kit.decoders.transfer import upload


class Reading:
    """N slots of one pass, and the mask of each.

    Args:
        config: how ids are drawn.
        table: holds the masks.
        parts: the slots.
        masks: what may stand at each, (V,).
        tempered: whether log-probabilities are those of the distribution that is drawn from.

    Attributes:
        picks_N: an id for each, on the host; 0 before anything is drawn.
        sound: whether any allowed id has a finite score.
        used: the statistics that were asked for.
    """

    def __init__(
        self,
        config: DiffusionConfig,
        table: MaskTable,
        parts: Sequence[Part],
        masks: Sequence[Tensor],
        tempered: bool = False,
    ) -> None:
        self._table, self._logits, self._tempered = table, PassLogits(parts), tempered
        self._rows = table.rows(masks)
        text, image = way_of(config.text), way_of(config.image)
        self._ways = [image if table.only_codes(row) else text for row in self._rows]
        self._device = self._logits.device
        self.picks_N = torch.zeros(len(self._rows), dtype=torch.long)
        self.sound: list[bool] = []
        self.used: dict[Statistic, None] = {}
        self._found: dict[Statistic, Tensor] = {}
        self._whole_NV: Tensor | None = None

    def read(self, statistics: Sequence[Statistic], uniforms_N: Tensor | None = None) -> None:
        """Find whether each slot is sound, some statistics, and by uniform numbers the picks; all in one copy."""
        dice_N = None if uniforms_N is None else upload(uniforms_N, self._device)
        chunks = [self._columns(slots, statistics, dice_N) for slots in self._logits.chunks()]
        found_NC = torch.cat([_packed(each) for each in chunks]).cpu()
        short = found_NC[:, 2].nonzero()[:, 0].tolist()
        for chunk in self._logits.chunks(len(short)):
            some = [short[at] for at in chunk]
            found_NC[some] = _packed(self._columns(some, statistics, dice_N, whole=True)).cpu()
        self.picks_N, sound_N, _, *values = _unpacked(found_NC, chunks[0])
        self.sound = sound_N.tolist()
        self._found |= dict(zip(statistics, values, strict=True))

    def of(self, statistic: Statistic) -> Tensor:
        """A statistic of each slot, on the host."""
        self.used[statistic] = None
        if statistic not in self._found:
            self._found[statistic] = self._statistic(statistic, self._logits.chunks())
        return self._found[statistic]

    def anew(self, statistic: Statistic, start: int, stop: int) -> Tensor:
        """The same of some slots alone, not kept."""
        chunks = self._logits.chunks(stop - start)
        return self._statistic(statistic, [range(start + each.start, start + each.stop) for each in chunks])

    def _statistic(self, statistic: Statistic, chunks: Sequence[range]) -> Tensor:
        picks_N = upload(self.picks_N, self._device)
        found = [
            statistic(self._logp(self._masked(each), each), picks_N[each.start : each.stop])
            for each in chunks
        ]
        return torch.cat(found).cpu()

    def logp(self) -> Tensor:
        """All log-probabilities (N, V), on the host."""
        if self._whole_NV is None:
            chunks = [self._logp(self._masked(slots), slots) for slots in self._logits.chunks()]
            self._whole_NV = torch.cat(chunks).cpu()
        return self._whole_NV

    def probability(self, slot: int, id: int) -> float:
        """Of an id that is not the pick of a slot."""
        return float(self._logp(self._masked([slot]), [slot])[0, id].exp())

    def model_logp(self, slots: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Log-probabilities of ids (K,) at some slots, by the model alone: without guidance and masks."""
        if not slots:
            return []
        ranked = sorted(range(len(slots)), key=slots.__getitem__)
        ids_K1 = upload([ids[at] for at in ranked], self._device)[:, None]
        found = list[Tensor]()
        for chunk in self._logits.chunks(len(ranked)):
            logits_KV = self._logits.plain([slots[ranked[at]] for at in chunk])
            logits_KV[:, self._table.mask] = -torch.inf
            found.append(logits_KV.log_softmax(-1).gather(-1, ids_K1[chunk.start : chunk.stop]))
        logprobs = dict(zip(ranked, torch.cat(found)[:, 0].cpu().tolist(), strict=True))
        return [logprobs[at] for at in range(len(slots))]

    def row(self, start: int, stop: int) -> Row:
        """Some slots that belong to one row."""
        return Row(self, start, stop)

    def _masked(self, slots: Sequence[int]) -> Tensor:
        allowed_KV = self._table.allowed([self._rows[slot] for slot in slots])
        return torch.where(allowed_KV, self._logits.mixed(slots), -torch.inf)

    def _logp(self, masked_KV: Tensor, slots: Sequence[int]) -> Tensor:
        if not self._tempered:
            return masked_KV.log_softmax(-1)
        return drawn_from(masked_KV, *ways_of([self._ways[slot] for slot in slots], self._device))

    def _columns(
        self,
        slots: Sequence[int],
        statistics: Sequence[Statistic],
        dice_N: Tensor | None,
        whole: bool = False,
    ) -> list[Tensor]:
        """Picks, what is sound, where the best ids are too few, and statistics; with `whole` of such slots."""
        masked_KV, ways = self._masked(slots), [self._ways[slot] for slot in slots]
        short_K = torch.zeros(len(slots), dtype=torch.bool, device=self._device)
        if dice_N is None:
            picks_K = short_K.long()
        elif whole:
            uniforms_K = dice_N.index_select(0, upload(slots, self._device))
            picks_K = draw(masked_KV, uniforms_K, *ways_of(ways, self._device))
        else:
            picks_K, short_K = draw_each(masked_KV, dice_N[slots[0] : slots[-1] + 1], ways)
        sound_K, logp_KV = masked_KV.amax(-1).isfinite(), self._logp(masked_KV, slots)
        return [picks_K, sound_K, short_K, *(statistic(logp_KV, picks_K) for statistic in statistics)]


@dataclass(frozen=True, slots=True)
class Row:
    """The slots `start:stop` of a reading, as `Scores` asks for them."""

    reading: Reading
    start: int
    stop: int

    def picks(self) -> Tensor:
        """The pick (M,) at each."""
        return self.reading.picks_N[self.start : self.stop]

    def logp(self) -> Tensor:
        """Log-probabilities (M, V)."""
        return self.reading.logp()[self.start : self.stop]

    def of(self, statistic: Statistic) -> Tensor:
        """A statistic of each."""
        # What is made anew at each call (a lambda, a partial) no other row asks for.
        if "<" in getattr(statistic, "__qualname__", "<"):
            return self.reading.anew(statistic, self.start, self.stop)
        return self.reading.of(statistic)[self.start : self.stop].clone()


def _packed(columns: Sequence[Tensor]) -> Tensor:
    # Ids, flags and fp32 numbers are exact in fp64, and one tensor is one copy.
    return torch.cat([each.double().reshape(len(each), -1) for each in columns], 1)


def _unpacked(found_NC: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    widths = [each[:1].numel() for each in like]
    return [
        part.to(each.dtype).reshape(len(part), *each.shape[1:])
        for part, each in zip(torch.split(found_NC, widths, 1), like, strict=True)
    ]
