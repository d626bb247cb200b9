"""A finite set of answers, of which there may be millions, as sorted runs of tokens in compact arrays.

From left to right a beginning is a range of the sorted answers, and what may follow are the tokens of one column of it.
In any order what is left are the answers that agree with all that stands: what may come into a slot are the tokens of
its column.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cm3kit.decoders.grammar.tables import MOST_CLASSES, MOST_STATES, NEVER, NOWHERE, Table

KEPT = 256
"""Masks of beginnings, and of first slots, that are kept."""


@dataclass(frozen=True, slots=True)
class TokenArrays:
    """N answers in lexicographic order: `tokens[starts[n] : starts[n + 1]]`, each token an index of the text range."""

    tokens_M: NDArray[np.unsignedinteger]
    starts_N1: NDArray[np.unsignedinteger]

    def __len__(self) -> int:
        return len(self.starts_N1) - 1

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.tokens_M.nbytes + self.starts_N1.nbytes

    @staticmethod
    def of(answers: Iterable[Sequence[int]], size: int) -> TokenArrays:
        """Arrays of answers in any order, each kept once; `size` is the number of tokens."""
        wide = np.dtype(">u2" if size <= 1 << 16 else ">u4")
        # Big-endian numbers sort as their bytes do.
        rows = sorted({np.asarray(each, dtype=wide).tobytes() for each in answers})
        starts_N1 = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) // wide.itemsize for row in rows], out=starts_N1[1:])
        tokens_M = np.frombuffer(b"".join(rows), dtype=wide).astype(wide.newbyteorder("="))
        small = np.uint32 if starts_N1[-1] < 1 << 32 else np.uint64
        return TokenArrays(tokens_M, starts_N1.astype(small))


class TokenTrie:
    """Implements `language.Language` for a finite set.

    Args:
        arrays: the answers.
        first: id of token 0. size: V.
        end: the id that ends an answer.
    """

    def __init__(
        self, arrays: TokenArrays, first: int, size: int, end: int, notes: tuple[str, ...] = ()
    ) -> None:
        self.arrays, self.first, self.size, self.end, self.notes = arrays, first, size, end, notes
        self.lengths_N = np.diff(arrays.starts_N1).astype(np.int32)
        self._views: OrderedDict[tuple[int, bool], _View] = OrderedDict()

    def ending(self, end: int) -> TokenTrie:
        """See `Language`."""
        return TokenTrie(self.arrays, self.first, self.size, end, self.notes)

    def shortest(self) -> int | None:
        """See `Language`."""
        return int(self.lengths_N.min()) if len(self.lengths_N) else None

    def fits(self, most: int, exact: bool) -> bool:
        """See `Language`."""
        return bool((self.lengths_N == most).any() if exact else (self.lengths_N <= most).any())

    def holds(self, ids: Sequence[int]) -> bool:
        """See `Language`."""
        low, high = self._range(ids)
        return low < high and int(self.lengths_N[low]) == len(ids)

    def goes_on(self, ids: Sequence[int]) -> bool:
        """See `Language`."""
        low, high = self._range(ids)
        return low < high and int(self.lengths_N[high - 1]) > len(ids)

    def run(self, most: int, exact: bool) -> TrieRun:
        """See `Language`."""
        return TrieRun(self.view(most, exact))

    def slots(self, length: int, exact: bool) -> TrieSlots:
        """See `Language`."""
        return TrieSlots(self.view(length, exact), length, exact)

    def view(self, most: int, exact: bool) -> _View:
        """The answers of at most, or exactly, so many ids."""
        longest = int(self.lengths_N.max(initial=0))
        key = (most if exact else min(most, longest), exact)
        found = self._views.pop(key, None) or _View(self, *key)
        self._views[key] = found
        if len(self._views) > 8:
            self._views.popitem(last=False)
        return found

    def _range(self, ids: Sequence[int]) -> tuple[int, int]:
        view, low, high = self.view(1 << 30, False), 0, len(self.lengths_N)
        for depth, id in enumerate(ids):
            low, high = view.child(low, high, depth, id - self.first)
        return low, high


class _View:
    """Answers of some lengths, in order; `rows_K` are their numbers, None for all."""

    def __init__(self, trie: TokenTrie, most: int, exact: bool) -> None:
        self.trie, lengths_N = trie, trie.lengths_N
        kept_N = lengths_N == most if exact else lengths_N <= most
        self.rows_K = None if kept_N.all() else np.flatnonzero(kept_N).astype(np.uint32)
        self.count = len(lengths_N) if self.rows_K is None else len(self.rows_K)
        self.masks: OrderedDict[object, Tensor] = OrderedDict()

    def rows(self, low: int, high: int) -> NDArray[np.integer]:
        """Numbers of the answers of a range."""
        return np.arange(low, high) if self.rows_K is None else self.rows_K[low:high]

    def column(self, rows_K: NDArray[np.integer], depth: int) -> NDArray[np.integer]:
        """The tokens at a depth, of answers that are long enough."""
        arrays = self.trie.arrays
        found: NDArray[np.integer] = arrays.tokens_M[
            arrays.starts_N1[rows_K] + arrays.starts_N1.dtype.type(depth)
        ]
        return found

    def ended(self, low: int, high: int, depth: int) -> int:
        """How many answers of a range end at its depth; they come first."""
        if low == high or self.trie.lengths_N[self.rows(low, low + 1)[0]] > depth:
            return 0
        return 1

    def child(self, low: int, high: int, depth: int, token: int) -> tuple[int, int]:
        """The range of the answers that go on with a token; an empty one if none does."""
        low += self.ended(low, high, depth)
        return self._bound(low, high, depth, token), self._bound(low, high, depth, token + 1)

    def _bound(self, low: int, high: int, depth: int, token: int) -> int:
        """The first answer of a range whose token is no less."""
        while low < high:
            middle = (low + high) // 2
            if int(self.column(self.rows(middle, middle + 1), depth)[0]) < token:
                low = middle + 1
            else:
                high = middle
        return low

    @cached_property
    def table(self) -> Table | None:
        """The trie of the answers; None where it is too large."""
        rows_K, trie = self.rows(0, self.count), self.trie
        if int(trie.lengths_N[rows_K].sum()) >= MOST_STATES:
            return None
        starts = trie.arrays.starts_N1.tolist()
        answers = [trie.arrays.tokens_M[starts[row] : starts[row + 1]].tolist() for row in rows_K.tolist()]
        tokens = sorted({token for answer in answers for token in answer})
        if len(tokens) > MOST_CLASSES:
            return None
        class_of = {token: number for number, token in enumerate(tokens)}
        children: list[dict[int, int]] = [{}]
        final, cut = {}, {}
        for answer in answers:
            node = 0
            for token in answer:
                node = children[node].setdefault(class_of[token], len(children))
                children += [{}] * (node == len(children))
            final[node], cut[node] = True, not trie.goes_on([trie.first + token for token in answer])
        after_SC = torch.full((len(children), len(tokens)), NOWHERE)
        for state, row in enumerate(children):
            after_SC[state, list(row)] = torch.tensor(list(row.values()), dtype=torch.int64)
        class_V = torch.full((trie.size,), len(tokens))
        class_V[torch.tensor(tokens, dtype=torch.int64) + trie.first] = torch.arange(len(tokens))
        final_S, cut_S = (
            torch.tensor([each.get(at, False) for at in range(len(children))]) for each in (final, cut)
        )
        return Table.flat(class_V, after_SC, torch.where(after_SC < 0, NEVER, 0), final_S, cut_S)

    def keep(self, key: object, mask_V: Tensor) -> Tensor:
        """Cache a mask."""
        self.masks[key] = mask_V
        if len(self.masks) > KEPT:
            self.masks.popitem(last=False)
        return mask_V

    def mask(self, tokens_K: NDArray[np.integer], end: bool) -> Tensor:
        """The ids of tokens, and the end where it may stand."""
        mask_V = np.zeros(self.trie.size, dtype=np.bool_)
        mask_V[tokens_K.astype(np.int64) + self.trie.first] = True
        mask_V[self.trie.end] |= end
        return torch.from_numpy(mask_V)


class TrieRun:
    """Implements `language.Run`. All answers of the view fit, so what is left to write need not be asked."""

    def __init__(self, view: _View) -> None:
        self._view, self._low, self._high, self._depth = view, 0, view.count, 0

    def allowed(self, left: int) -> Tensor:
        """See `Run`."""
        view, key = self._view, (self._low, self._high, self._depth)
        found = view.masks.get(key)
        if found is None:
            ended = view.ended(*key)
            column_K = view.column(view.rows(self._low + ended, self._high), self._depth)
            found = view.keep(key, view.mask(column_K, ended > 0))
        return found

    def take(self, id: int) -> None:
        """See `Run`."""
        view = self._view
        self._low, self._high = view.child(self._low, self._high, self._depth, id - view.trie.first)
        self._depth += 1

    def table(self) -> Table | None:
        """See `Run`."""
        return None if self._depth else self._view.table

    @property
    def more(self) -> bool:
        """See `Run`; answers that are too long for the view count too."""
        lengths_N = self._view.trie.lengths_N
        if self._view.rows_K is None:
            return self._low < self._high and int(lengths_N[self._high - 1]) > self._depth
        row = int(self._view.rows_K[self._low]) if self._low < self._high else 0
        arrays = self._view.trie.arrays
        start = int(arrays.starts_N1[row])
        ids = arrays.tokens_M[start : start + self._depth].astype(np.int64) + self._view.trie.first
        return self._view.trie.goes_on(ids.tolist())


class TrieSlots:
    """Implements `language.Slots`: the answers that agree with all that stands."""

    def __init__(self, view: _View, length: int, exact: bool) -> None:
        self._view, self._length, self._exact = view, length, exact
        self._committed: dict[int, int] = {}
        self._rows_K: NDArray[np.integer] | None = None
        self._masks: dict[int, Tensor] = {}

    @property
    def possible(self) -> bool:
        """See `Slots`."""
        return self._view.count > 0

    def allowed(self, slot: int) -> Tensor:
        """See `Slots`."""
        if slot in self._committed:
            return self._mask(
                self._agreeing({at: id for at, id in self._committed.items() if at != slot}), slot
            )
        found = self._masks.get(slot)
        if found is None and self._rows_K is None and (found := self._view.masks.get(slot)) is None:
            found = self._view.keep(slot, self._mask(self._view.rows(0, self._view.count), slot))
        elif found is None:
            assert self._rows_K is not None
            found = self._mask(self._rows_K, slot)
        self._masks[slot] = found
        return found

    def commit(self, slot: int, id: int) -> None:
        """See `Slots`."""
        if not self.allowed(slot)[id]:
            raise ValueError(f"id {id} is not allowed in slot {slot} of its span")
        over = slot in self._committed
        self._committed[slot] = id
        if over or self._rows_K is None:
            self._rows_K = self._agreeing(self._committed)
        else:
            self._rows_K = self._with(self._rows_K, slot, id)
        self._masks.clear()

    def release(self, slot: int) -> None:
        """See `Slots`."""
        if self._committed.pop(slot, None) is not None:
            self._rows_K = self._agreeing(self._committed) if self._committed else None
            self._masks.clear()

    def _agreeing(self, committed: dict[int, int]) -> NDArray[np.integer]:
        rows_K = self._view.rows(0, self._view.count)
        for slot, id in committed.items():
            rows_K = self._with(rows_K, slot, id)
        return rows_K

    def _with(self, rows_K: NDArray[np.integer], slot: int, id: int) -> NDArray[np.integer]:
        """Those of some answers that have an id in a slot."""
        longer_K = self._view.trie.lengths_N[rows_K] > slot
        kept_K: NDArray[np.integer] = rows_K[~longer_K]
        if id != self._view.trie.end:
            rows_K = rows_K[longer_K]
            kept_K = rows_K[self._view.column(rows_K, slot) == id - self._view.trie.first]
        return kept_K

    def _mask(self, rows_K: NDArray[np.integer], slot: int) -> Tensor:
        longer_K = self._view.trie.lengths_N[rows_K] > slot
        ends = not self._exact and not bool(longer_K.all())
        return self._view.mask(self._view.column(rows_K[longer_K], slot), ends)
