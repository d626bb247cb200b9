"""Denoisers that keep keys and values between the passes of a board that is written block by block.

`ExactCache` is for models trained block by block, whose finished blocks never look at later ones (BD3-LM,
arXiv:2503.09573): it saves time and changes nothing. `ApproximateCache` is for models that look both ways, where
every id that is written changes the keys and values of all others: what is outside the block is computed at the
block's start and then left as it is (Fast-dLLM, arXiv:2505.22618).

Both go by what they are given: if rows are others, or ids have changed of which something is kept, these are
computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cm3kit.decoders.diffusion.cached_forward import Passes, copies
from cm3kit.decoders.diffusion.denoiser import Ask
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.models.attention import block_mask
from cm3kit.types import Verification
from cm3kit_tokenizers.errors import ConfigError

Found = tuple[list[Tensor], tuple[int, int]]
"""Logits (M, V) of each row, and the places `start:stop` that were computed for them."""


class ExactCache:
    """Blocks before the active one come from the cache, and only the active one is computed.

    The pass that first asks for a block stores the one before it, which costs no pass of its own: P clean
    places and n blocks of b with s passes each take P + n s b + (n - 1) b places through the layers.

    Args:
        backbone: a model trained with `models.attention.block_mask` on a noisy and a clean copy; one that looks
            at the time gets that of the block in it, and 0 before it.
        mask: id of an open slot.
        vocab_size: logits are given for this many ids, from 0.
        block_size: places of a block. Blocks are counted from the active one, so that the first of a row is
            shorter where windows do not start at multiples of it.
        shift: whether the logits of a slot are those of the place before it.
        verify: compare every pass with one without a cache, in `verification`.
        causal: whether the clean copy looked left id by id (`objectives.CausalBlocks`). Blocks then begin and end
            where the windows do.
        engine: see `Passes`.

    Attributes:
        computed: for each row the places that the latest call took through the layers.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        mask: int,
        vocab_size: int,
        block_size: int,
        *,
        shift: bool = False,
        verify: bool = False,
        causal: bool = False,
        engine: LeanEngine | None = None,
    ) -> None:
        self.mask, self.block_size = mask, block_size
        self._causal, self._clean_size = causal, 1 if causal else block_size
        self.computed: tuple[int, ...] = ()
        self.verification = Verification() if verify else None
        self._passes = Passes(backbone, vocab_size, shift, engine)
        self._stored: dict[int, _Stored] = {}

    def open_block(self, ids_BT: Tensor, lengths: Sequence[int], block: tuple[int, int]) -> None:
        """Nothing to do yet: the block before is stored by the first pass of this one."""
        self.computed = (0,) * len(lengths)

    def logits(self, ask: Ask) -> list[Tensor]:
        """For each row fp32 logits (M, V) of its slots, which lie in the block that begins with `ask.block`.

        Raises:
            ConfigError: `ask.block`, or the row where there is none, is longer than a block (`bad_config`), or
                a row is longer than the model's window (`too_long`).
            ValueError: a slot lies outside the block.
        """
        found, self.computed = self._passes.each(ask, self._part)
        return found

    def together(self, ask: Ask) -> list[Tensor]:
        """As `logits`, of rows that are alike before the block: what is kept of them is computed and kept once.

        Raises:
            ValueError: they are not alike.
        """
        start, stop = self._block(ask)
        rows, first_1T = len(ask.lengths), ask.ids_BT[:1]
        if bool((ask.ids_BT[:, :start] != first_1T[:, :start]).any()):
            raise ValueError("The rows differ before the block; ask for them by `logits`.")
        self._passes.check(max(ask.lengths))
        origin, stored = start % self._clean_size, self._stored.pop(-1, None)
        if stored is None or stored.origin != origin:
            stored = _Stored(DynamicCache(), first_1T[:, :0], ask.lengths[:1], origin)
        known = self._known(stored, first_1T, start)
        stored.crop(known)
        if known < start:
            seen_11QK = self._sees((start,), start, start, slice(known, start))
            clean_1Q = torch.zeros(1, start - known)
            hidden_1QD = self._passes.run(first_1T[:, known:start], seen_11QK, known, stored.past, clean_1Q)
            stored.take(first_1T, start, hidden_1QD)
        self._stored[-1] = stored
        mask_B1QK = self._sees(ask.lengths, start, stop, slice(start, stop))
        past, times_BQ = copies(stored.past, rows), _times(ask, start, stop)[:, start:]
        hidden_BQD = self._passes.run(ask.ids_BT[:, start:stop], mask_B1QK, start, past, times_BQ)
        before_BD = None if stored.before_BD is None else stored.before_BD.expand(rows, -1)
        self.computed = (stop - start,) * rows
        return self._passes.read(hidden_BQD, start, before_BD, ask.slots)

    def _part(self, row: int, ask: Ask) -> Found:
        start, stop = self._block(ask)
        origin = start % self._clean_size
        # If a pass fails, the next one must not use its partial state.
        stored = self._stored.pop(row, None)
        if stored is None or stored.origin != origin or not _same_rows(ask, stored.ids_BS, stored.lengths):
            stored = _Stored(DynamicCache(), ask.ids_BT[:, :0], ask.lengths, origin)
        known = self._known(stored, ask.ids_BT, start)
        stored.crop(known)
        mask_B1QK = self._sees(ask.lengths, start, stop, slice(known, stop))
        times_BQ = _times(ask, start, stop)[:, known:]
        hidden_BQD = self._passes.run(ask.ids_BT[:, known:stop], mask_B1QK, known, stored.past, times_BQ)
        stored.take(ask.ids_BT, start, hidden_BQD)
        self._stored[row] = stored
        found = self._passes.read(hidden_BQD[:, start - known :], start, stored.before_BD, ask.slots)
        if self.verification is not None:
            self.verification.add(found, self._plain(ask, start, stop))
        return found, (known, stop)

    def _block(self, ask: Ask) -> tuple[int, int]:
        """The active block: on a grid it is whole as in training, even where the window ends before it does."""
        width = ask.ids_BT.shape[1]
        start, stop = ask.block or (0, width)
        if stop - start > self.block_size:
            raise ConfigError(
                f"{stop - start} places are written at once, and the model's blocks hold {self.block_size};"
                f" set block_size to {self.block_size}.",
                code="bad_config",
            )
        stop = min(stop if self._causal else start + self.block_size, width)
        if not _lie_in(ask, start, stop):
            raise ValueError(
                f"A slot outside {start}:{stop} was asked for; only the block's own are computed."
            )
        return start, stop

    def _known(self, stored: _Stored, ids_BT: Tensor, start: int) -> int:
        """How many places from the left are as they were stored; whole blocks."""
        known = min(stored.ids_BS.shape[1], start)
        changed_S = (ids_BT[:, :known] != stored.ids_BS[:, :known]).any(0).nonzero()
        if len(changed_S):
            known = self._start_of(int(changed_S[0]), stored.origin)
        # A shifted model also needs the hidden state of the place before the block.
        if self._passes.shift and known == start != stored.before:
            known = self._start_of(start - 1, stored.origin)
        return known

    def _start_of(self, place: int, origin: int) -> int:
        return max(0, place - (place - origin) % self._clean_size)

    def _sees(self, lengths: Sequence[int], start: int, stop: int, queries: slice) -> Tensor:
        """Mask (B, 1, Q, stop) of rows that are clean before `start`."""
        place_T, length_B = torch.arange(stop), torch.tensor(lengths)
        inside_BT = place_T < length_B[:, None]
        block_BT = ((place_T - start) // self._clean_size).clamp(max=0).expand_as(inside_BT)
        return block_mask(inside_BT.long(), block_BT, (place_T >= start).expand_as(inside_BT), queries)

    def _plain(self, ask: Ask, start: int, stop: int) -> list[Tensor]:
        mask_B1TT = self._sees(ask.lengths, start, stop, slice(0, stop))
        hidden_BTD = self._passes.run(ask.ids_BT[:, :stop], mask_B1TT, 0, None, _times(ask, start, stop))
        return self._passes.read(hidden_BTD, 0, None, ask.slots)


def _times(ask: Ask, start: int, stop: int) -> Tensor:
    """Times (B, stop): as in training, 0 where a row is clean, and its own in the active block."""
    return torch.tensor(ask.times)[:, None] * (torch.arange(stop) >= start)


@dataclass(slots=True)
class _Stored:
    """Keys and values of clean blocks.

    Attributes:
        past: of the places from 0 on.
        ids_BS: ids that they were computed from.
        origin: a block starts at places that leave this rest.
        before: `before_BD` is the hidden state of the place before this one; None at the row's start.
    """

    past: DynamicCache
    ids_BS: Tensor
    lengths: tuple[int, ...]
    origin: int
    before: int = 0
    before_BD: Tensor | None = None

    def crop(self, length: int) -> None:
        """Keep the first places only."""
        _crop(self.past, self.ids_BS.shape[1] - length)
        self.ids_BS = self.ids_BS[:, :length]

    def take(self, ids_BT: Tensor, start: int, hidden_BQD: Tensor) -> None:
        """Keep what a pass has added of the places before `start`, and drop the rest."""
        added = start - self.ids_BS.shape[1]
        _crop(self.past, hidden_BQD.shape[1] - added)
        self.ids_BS = ids_BT[:, :start].clone()
        if added or not start:
            self.before = start
            self.before_BD = hidden_BQD[:, added - 1].clone() if added else None


class ApproximateCache:
    """At a block's start every place is computed, afterwards only some, against what is kept of the others.

    With P clean places and L open ones in n blocks of b, block by block with s passes each, the places that go
    through the layers are Σ_j (P + L) + (s - 1)(L - b j) for j = 0, …, n - 1 where what follows the block is
    computed at every pass ("prefix"), and n ((P + L) + (s - 1) b) where it is kept too ("dual").

    Args:
        backbone: a model that looks both ways.
        mask: id of an open slot.
        vocab_size: logits are given for this many ids, from 0.
        dual: whether what follows the block is kept too.
        shift: whether the logits of a slot are those of the place before it.
        verify: compare every pass over some places with one over all, in `verification`.
        engine: see `Passes`.

    Attributes:
        computed: for each row the places that the latest call took through the layers.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        mask: int,
        vocab_size: int,
        *,
        dual: bool,
        shift: bool = False,
        verify: bool = False,
        engine: LeanEngine | None = None,
    ) -> None:
        self.mask, self.dual = mask, dual
        self.computed: tuple[int, ...] = ()
        self.verification = Verification() if verify else None
        self._passes = Passes(backbone, vocab_size, shift, engine)
        self._kept: dict[int, _Kept] = {}

    def open_block(self, ids_BT: Tensor, lengths: Sequence[int], block: tuple[int, int]) -> None:
        """Clear the cache; the next pass computes every position."""
        self._kept.clear()
        self.computed = (0,) * len(lengths)

    def logits(self, ask: Ask) -> list[Tensor]:
        """For each row fp32 logits (M, V) of its slots; of slots outside the block by computing every place.

        Raises:
            ConfigError: a row is longer than the model's window (`too_long`).
        """
        found, self.computed = self._passes.each(ask, self._part)
        return found

    def _part(self, row: int, ask: Ask) -> Found:
        width = ask.ids_BT.shape[1]
        start, stop = ask.block or (0, width)
        start, stop = start, min(stop, width) if self.dual else width
        kept = self._kept.pop(row, None)
        if kept is None or not kept.serves(ask, start, stop):
            return self._refresh(row, ask, start, stop), (0, width)
        places_K = torch.cat([torch.arange(start), torch.arange(stop, width), torch.arange(start, stop)])
        mask_B1QK = _inside(ask.lengths, places_K, stop - start)
        hidden_BQD = self._passes.run(ask.ids_BT[:, start:stop], mask_B1QK, start, kept.past)
        _crop(kept.past, stop - start)
        self._kept[row] = kept
        found = self._passes.read(hidden_BQD, start, kept.before_BD, ask.slots)
        if self.verification is not None:
            self.verification.add(found, self._whole(ask, None)[0])
        return found, (start, stop)

    def _refresh(self, row: int, ask: Ask, start: int, stop: int) -> list[Tensor]:
        past = DynamicCache()
        found, hidden_BTD = self._whole(ask, past)
        for layer in past.layers:
            layer.keys = torch.cat([layer.keys[:, :, :start], layer.keys[:, :, stop:]], 2)
            layer.values = torch.cat([layer.values[:, :, :start], layer.values[:, :, stop:]], 2)
        before_BD = hidden_BTD[:, start - 1].clone() if start else None
        self._kept[row] = _Kept(past, ask.ids_BT.clone(), ask.lengths, start, stop, before_BD)
        return found

    def _whole(self, ask: Ask, past: DynamicCache | None) -> tuple[list[Tensor], Tensor]:
        width = ask.ids_BT.shape[1]
        mask_B1TT = _inside(ask.lengths, torch.arange(width), width)
        hidden_BTD = self._passes.run(ask.ids_BT, mask_B1TT, 0, past)
        return self._passes.read(hidden_BTD, 0, None, ask.slots), hidden_BTD


@dataclass(frozen=True, slots=True)
class _Kept:
    """Keys and values of all places but `start:stop`, as they were when the rows were `ids_BT`."""

    past: DynamicCache
    ids_BT: Tensor
    lengths: tuple[int, ...]
    start: int
    stop: int
    before_BD: Tensor | None

    def serves(self, ask: Ask, start: int, stop: int) -> bool:
        """Whether this is what was kept for such a call, and the call asks for slots in `start:stop` alone."""
        if (start, stop, ask.ids_BT.shape) != (self.start, self.stop, self.ids_BT.shape):
            return False
        if not _same_rows(ask, self.ids_BT, self.lengths):
            return False
        same_BT = ask.ids_BT == self.ids_BT
        outside = bool(same_BT[:, :start].all() and same_BT[:, stop:].all())
        return outside and _lie_in(ask, start, stop)


def _same_rows(ask: Ask, ids_BT: Tensor, lengths: tuple[int, ...]) -> bool:
    """Whether rows are as many and as long as before; a row that has left counts as if it were still there."""
    same_size = len(ask.ids_BT) == len(ids_BT)
    return same_size and all(now in (0, then) for now, then in zip(ask.lengths, lengths, strict=True))


def _lie_in(ask: Ask, start: int, stop: int) -> bool:
    return all(start <= slot < stop for each in ask.slots for slot in each.tolist())


def _inside(lengths: Sequence[int], places_K: Tensor, queries: int) -> Tensor:
    """Mask (B, 1, Q, K) under which every query sees all places that are not padding."""
    # A row of padding alone sees its first place: a softmax over nothing is no number.
    length_B = torch.tensor(lengths).clamp(min=1)
    return (places_K < length_B[:, None])[:, None, None].expand(-1, -1, queries, -1)


def _crop(past: DynamicCache, length: int) -> None:
    # Some versions of transformers remove everything if asked to remove nothing.
    if length:
        past.crop(-length)
