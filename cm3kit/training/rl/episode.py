"""Episodes of reinforcement learning: a row, and the ids that each pass of the decoder wrote into it.

An episode is replayed from its first state. What it does not score: ids that the rules left no choice about (an end
behind an end), and edits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from cm3kit.decoders.diffusion.blocks import blocks_of
from cm3kit.decoders.diffusion.settings import EXACT, DiffusionConfig
from cm3kit.types import Commit, Result

Window = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Write:
    """What one pass changed.

    Attributes:
        step: number of the pass.
        positions: in the row, with the `ids` that were put there.
        scored: whether each was a choice of the policy.
        window: positions `start:stop` of the block, for models that were trained in blocks.
        kind: what is written, replaced (`edit`), or masked again (`remask`).
    """

    step: int
    positions: tuple[int, ...]
    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    window: Window | None = None
    kind: Literal["write", "remask", "edit"] = "write"


@dataclass(frozen=True, slots=True)
class Episode:
    """A row from its first state to its last.

    Attributes:
        start: the row before the first pass, with the id `mask` at open positions.
        writes: what the passes did, in order.
        mask: id of an open position.
        prefix: known ids at the start that look at one another, in a causal model.
    """

    start: tuple[int, ...]
    writes: tuple[Write, ...]
    mask: int
    prefix: int = 0

    @property
    def open(self) -> tuple[int, ...]:
        """The positions that were open at the start."""
        return tuple(position for position, id in enumerate(self.start) if id == self.mask)

    @property
    def final(self) -> tuple[int, ...]:
        """The row at the end."""
        row = list(self.start)
        for write in self.writes:
            self.apply(row, write)
        return tuple(row)

    def apply(self, row: list[int], write: Write) -> None:
        """Change a row as a pass did."""
        for position, id in zip(write.positions, write.ids, strict=True):
            row[position] = self.mask if write.kind == "remask" else id

    def answer(self) -> list[tuple[int, int, Window | None]]:
        """Position, id and window of each scored id that stands at the end, from left to right."""
        found: dict[int, tuple[int, Window | None]] = {}
        for write, position, id, scored in self._changes():
            found.pop(position, None)
            if scored and write.kind == "write":
                found[position] = id, write.window
        return [(position, *found[position]) for position in sorted(found)]

    def _changes(self) -> Iterator[tuple[Write, int, int, bool]]:
        for write in self.writes:
            for position, id, scored in zip(write.positions, write.ids, write.scored, strict=True):
                yield write, position, id, scored

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        writes = [
            {"step": each.step, "positions": each.positions, "ids": each.ids, "scored": each.scored,
             "window": each.window, "kind": each.kind}
            for each in self.writes
        ]  # fmt: skip
        return {"start": self.start, "writes": writes, "mask": self.mask, "prefix": self.prefix}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """What `as_dict` gave."""
        writes = tuple(
            Write(each["step"], tuple(each["positions"]), tuple(each["ids"]), tuple(each["scored"]),
                  None if each["window"] is None else (each["window"][0], each["window"][1]), each["kind"])
            for each in given["writes"]
        )  # fmt: skip
        return cls(tuple(given["start"]), writes, given["mask"], given["prefix"])


@dataclass(frozen=True, slots=True)
class View:
    """A state of an episode that the model scores.

    Attributes:
        row: what it sees.
        positions: where it is asked, for the log-probability of `ids`.
        tokens: numbers of the tokens of the episode that these stand for, and `shares` their part in the token's score.
        time: share of the open positions that is masked, of the block alone where there is a `window`.
        window: positions `start:stop` of the block that is open; what follows is not seen.
    """

    row: tuple[int, ...]
    positions: tuple[int, ...]
    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    shares: tuple[float, ...]
    time: float = 1.0
    window: Window | None = None


def masked_views(
    episode: Episode, row: Sequence[int], masked: Collection[int], asked: Mapping[int, tuple[int, int, float]]
) -> list[View]:
    """Views of a row in which some positions are masked: one, or one of each block with what is before it clean.

    Args:
        row: the ids there otherwise.
        masked: positions.
        asked: token, id and share by position.
    """
    windows = {write.window for write in episode.writes}
    if windows <= {None}:
        return [_view(row, masked, asked, None, episode)] if asked else []
    inside = [
        (window, {position: asked[position] for position in asked if window[0] <= position < window[1]})
        for window in sorted(each for each in windows if each is not None)
    ]
    return [_view(row, masked, mine, window, episode) for window, mine in inside if mine]


def _view(
    row: Sequence[int],
    masked: Collection[int],
    asked: Mapping[int, tuple[int, int, float]],
    window: Window | None,
    episode: Episode,
) -> View:
    start, stop = window or (0, len(row))
    shown = [
        episode.mask if position in masked and start <= position < stop else id
        for position, id in enumerate(row)
    ]
    slots = [position for position in episode.open if start <= position < stop]
    time = sum(shown[position] == episode.mask for position in slots) / max(1, len(slots))
    tokens, ids, shares = zip(*asked.values(), strict=True)
    return View(tuple(shown), tuple(asked), ids, tokens, shares, time, window)


def diffusion_episode(result: Result, mask: int, eoss: int, config: DiffusionConfig) -> Episode:
    """The episode of a canvas that was filled by the diffusion decoder."""
    flat = result.canvas.flatten(mask)
    blocks = blocks_of(flat, config) if config.cache in EXACT else None
    padded = [where for span, where in zip(result.canvas.spans, flat.ranges, strict=True) if not span.exact]
    row, writes = list(flat.ids), []
    for commit in result.commits or ():
        scored = _choices(commit, row, padded, eoss)
        window = None
        if blocks is not None:
            window = _window(blocks.around(commit.positions[0]), config, len(flat.ids))
        writes.append(Write(commit.step, commit.positions, commit.ids, scored, window, commit.kind))
        for position, id in zip(commit.positions, commit.ids, strict=True):
            row[position] = mask if commit.kind == "remask" else id
    return Episode(flat.ids, tuple(writes), mask)


def _window(window: Window, config: DiffusionConfig, length: int) -> Window:
    """The block as the model sees it: on a grid it is whole as in training, even where the gap ends before it does."""
    if config.cache == "exact" and config.block_size is not None:
        return window[0], min(window[0] + config.block_size, length)
    return window


def _choices(commit: Commit, row: Sequence[int], padded: Iterable[range], eoss: int) -> tuple[bool, ...]:
    """Which ids of a commit were chosen; behind an end id there are only end ids, by the rules or early exit."""
    if commit.kind != "write":
        return (False,) * len(commit.positions)
    now = dict(zip(commit.positions, commit.ids, strict=True))
    forced: set[int] = set()
    for where in padded:
        # Early exit closes a text in the very pass that has written its end, with log-probability 0.
        closed = {at for at, value in zip(commit.positions, commit.logprobs, strict=True) if value == 0.0}
        end = next((at for at in where if row[at] == eoss), where.stop)
        new = next((at for at in where if now.get(at, row[at]) == eoss), where.stop)
        forced |= {at for at in where if at > end or (at > new and at in closed)}
    return tuple(position not in forced for position in commit.positions)


def causal_episode(result: Result, mask: int) -> Episode:
    """The episode of a canvas that was filled from left to right: one pass, as one forward pass scores all of it."""
    canvas = result.canvas
    row, positions, ended = [*canvas.ids], list[int](), True
    end: int | None = None
    for span, fill in zip(canvas.spans, result.fills, strict=True):
        # An end id precedes the next answer, chosen or not, and is written once where the lead begins with it.
        begun = end is not None and span.lead[:1] == (end,)
        row += [] if ended or end is None else [end]
        row += span.lead[begun:]
        end, ended = span.end if fill.end is None else fill.end, len(fill.logprobs) > len(fill.ids)
        positions += range(len(row), len(row) + len(fill.logprobs))
        row += [*fill.ids, *([end] if ended and end is not None else [])]
    prefix = len(canvas.ids) if canvas.prompt_attention == "full" else 0
    ids = tuple(row[position] for position in positions)
    write = Write(0, tuple(positions), ids, (True,) * len(positions))
    opened = {*positions}
    start = tuple(mask if position in opened else id for position, id in enumerate(row))
    return Episode(start, (write,), mask, prefix)
