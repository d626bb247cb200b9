"""Memory-mapped token shards: documents by index, and rows of them in an order that can be resumed anywhere.

The order of an epoch is a computed permutation, so workers need no communication: row r of epoch e is the same for
any number of workers, processes and machines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3kit.rng import stream
from cm3kit_tokenizers.errors import DataError, ModelError
from cm3kit_tokenizers.vocab import Vocab

INDEX = "index.json"
_ROUNDS = 6
Numbers = NDArray[np.int64]


class TokenShards:
    """Documents of packed shards, by index.

    Raises:
        DataError: the folder holds no shards, or damaged ones.
        ModelError: `text_sha256` or `image_sha256` differs from that of the tokenizer that made them.
    """

    def __init__(self, folder: Path, text_sha256: str | None = None, image_sha256: str | None = None) -> None:
        self.folder = folder
        try:
            self.index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if self.index.get("format") != "cm3kit-shards/1":
                raise ValueError(f"the format is {self.index.get('format')!r}")
            self._dtype = np.dtype(self.index["dtype"]).newbyteorder("<")
            opened = [self._open(each) for each in self.index["shards"]]
        except (OSError, RecursionError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} holds no valid token shards: {error}.", code="bad_data") from error
        for kind, mine in (("text", text_sha256), ("image", image_sha256)):
            if mine is not None and mine != self.index[f"{kind}_sha256"]:
                raise ModelError(
                    f"{folder} was packed with another {kind} tokenizer; pack it again: cm3kit data pack.",
                    code="bad_checkpoint",
                )
        self.vocab = Vocab.from_dict(self.index["vocab"])
        self._tokens = [tokens for tokens, _, _ in opened]
        self._offsets = [offsets for _, offsets, _ in opened]
        self._firsts = np.cumsum([0, *(len(offsets) - 1 for offsets in self._offsets)])
        self.lengths: Numbers = np.concatenate([np.diff(offsets) for offsets in self._offsets])
        self.held: NDArray[np.bool_] = np.concatenate([held for _, _, held in opened])

    def _open(self, shard: dict[str, Any]) -> tuple[Any, Numbers, NDArray[np.bool_]]:
        name = str(shard["name"])
        if Path(name).name != name:
            raise ValueError(f"the name {name!r} leaves the folder")
        path = self.folder / f"{name}.tokens"
        offsets = np.load(self.folder / f"{name}.offsets.npy", allow_pickle=False)
        held = np.load(self.folder / f"{name}.held.npy", allow_pickle=False)
        size = path.stat().st_size
        whole = len(offsets) == len(held) + 1 == shard["documents"] + 1 and bool((np.diff(offsets) > 0).all())
        if not whole or offsets[0] != 0 or offsets[-1] * self._dtype.itemsize != size:
            raise ValueError(f"the length of {path.name} does not match its offsets")
        return np.memmap(path, self._dtype, "r"), offsets, held

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> list[int]:
        """Ids of a document, without `<eod>`."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        place = number - int(self._firsts[shard])
        start, stop = self._offsets[shard][place : place + 2]
        ids: list[int] = self._tokens[shard][start:stop].tolist()
        return ids

    def counts(self, held: bool = False) -> Numbers:
        """How often each id of the id space is in the documents that are held out, or in the others."""
        total = np.zeros(len(self.vocab), np.int64)
        for tokens, offsets, first in zip(self._tokens, self._offsets, self._firsts[:-1], strict=True):
            chosen = self.held[first : first + len(offsets) - 1] == held
            total += np.bincount(tokens[np.repeat(chosen, np.diff(offsets))], minlength=len(total))
        return total

    def fingerprint(self) -> str:
        """A hash of the documents' keys, order, lengths and held-out flags."""
        parts = (
            self.lengths.astype("<i8").tobytes(),
            self.held.tobytes(),
            str(self.index["text_sha256"]).encode(),
        )
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    def key(self, number: int) -> tuple[str, int]:
        """Key of the document's page, and number of the piece."""
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        with (self.folder / f"{self.index['shards'][shard]['name']}.keys").open(encoding="utf-8") as file:
            line = next(each for place, each in enumerate(file) if place == number - int(self._firsts[shard]))
        key, piece = json.loads(line)
        return str(key), int(piece)


def shuffled(places: Numbers, size: int, *seeds: int) -> Numbers:
    """Images of `places` under a permutation of 0 … size − 1 that is determined by the seeds.

    A Feistel network on as many bits as `size` needs, applied until the value is below `size` (cycle walking: Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002): no table, and the same on every machine.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64(2**half - 1)
    keys = [np.uint64(stream(*seeds, number)) for number in range(_ROUNDS)]
    out = np.asarray(places, np.uint64).copy()
    left = np.ones(len(out), bool)
    while left.any():
        high, low = out[left] >> np.uint64(half), out[left] & mask
        for key in keys:
            mixed = (low ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            high, low = low, high ^ ((mixed >> np.uint64(32)) & mask)
        out[left] = (high << np.uint64(half)) | low
        left[left] = out[left] >= size
    return out.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Position of the next row."""

    epoch: int = 0
    row: int = 0


class Rows:
    """Documents in shuffled order, side by side in rows of at most `window` ids.

    Args:
        shards: the documents.
        window: length of a row in ids.
        seed: of the order; each epoch has its own order.
        reserve: ids per document that are left for what an objective adds.
        copies: number of times that an objective repeats a document in a row.
        held: use the held-out documents instead of the others.
    """

    def __init__(
        self,
        shards: TokenShards,
        window: int,
        seed: int = 0,
        *,
        reserve: int = 14,
        copies: int = 1,
        held: bool = False,
    ) -> None:
        self.shards, self.window, self.seed = shards, window, seed
        self.numbers: Numbers = np.flatnonzero(shards.held == held)
        if not len(self.numbers):
            raise DataError(f"{shards.folder} has no documents to train on.", code="bad_data")
        self.costs: Numbers = np.minimum(window, copies * shards.lengths[self.numbers] + reserve)
        self._plan = lru_cache(maxsize=2)(self._planned)
        self._counts: dict[int, int] = {}

    def _planned(self, epoch: int) -> tuple[Numbers, Numbers]:
        """The order of an epoch, and the start of each row in it, with the end."""
        size = len(self.numbers)
        order = shuffled(np.arange(size), size, self.seed, epoch)
        ends = np.cumsum(self.costs[order])
        bounds = [0]
        while bounds[-1] < size:
            before = ends[bounds[-1] - 1] if bounds[-1] else 0
            bounds.append(int(np.searchsorted(ends, before + self.window, side="right")))
        return order, np.asarray(bounds)

    def count(self, epoch: int) -> int:
        """Number of rows of an epoch."""
        if epoch not in self._counts:
            self._counts[epoch] = len(self._plan(epoch)[1]) - 1
        return self._counts[epoch]

    def row(self, cursor: Cursor) -> list[tuple[int, int]]:
        """(document, its limit of ids) of a row, in order."""
        order, bounds = self._plan(cursor.epoch)
        places = order[bounds[cursor.row] : bounds[cursor.row + 1]]
        return list(zip(self.numbers[places].tolist(), self.costs[places].tolist(), strict=True))

    def after(self, cursor: Cursor, rows: int) -> Cursor:
        """The cursor `rows` rows later."""
        epoch, row = cursor.epoch, cursor.row + rows
        while row >= (count := self.count(epoch)):
            epoch, row = epoch + 1, row - count
        return Cursor(epoch, row)

    def take(self, cursor: Cursor, worker: int = 0, workers: int = 1) -> Iterator[tuple[Cursor, list[int]]]:
        """Infinite iterator over the rows, as document indices, of one of several workers that take turns.

        Once all rows before a cursor are done, any number of workers can resume from it.
        """
        at = self.after(cursor, worker)
        while True:
            yield at, [number for number, _ in self.row(at)]
            at = self.after(at, workers)
