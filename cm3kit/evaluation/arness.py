"""How left to right a row was written: local and global autoregressiveness (arXiv:2506.20639, sec. 3).

The paper orders a completion of n tokens. Here a canvas may have several runs of slots with fixed ids between
them, so a slot counts by its rank among the slots, and writing them from left to right scores exactly 1.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cm3kit.types import Commit, Trajectory

Kind = Literal["all", "text", "image"]
KS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Arness:
    """AR-ness of one kind of slots.

    Attributes:
        slots: how many there are, and `written` how many were written in the end.
        local_at: by k, the share of writes that end a run of k + 1 adjacent positions written one after the other from
            left to right; taken over the writes that k others precede, and None where there are none.
        global_at: by k, the share of writes into one of the k leftmost slots still masked (the paper's global
            AR-ness); None where nothing was written.
        parallelism: mean number of slots that a pass wrote, over the passes that wrote any.
    """

    slots: int
    written: int
    local_at: dict[int, float | None]
    global_at: dict[int, float | None]
    parallelism: float | None


def arness(trajectory: Trajectory, ks: Sequence[int] = KS) -> dict[Kind, Arness]:
    """AR-ness over all slots, over those of text and over those of pictures; kinds without slots are absent.

    What one pass wrote counts in the order of its commit: best score first, then from left to right. A slot
    that was opened again counts where it was written last, and an edit is no write. A slot that was never
    written stays masked to the end.

    Raises:
        ValueError: a k is below 1.
    """
    slots: dict[Kind, list[int]] = {"all": [], "text": [], "image": []}
    canvas = trajectory.canvas
    for span, where in zip(canvas.spans, canvas.flatten(-1).ranges, strict=True):
        slots["all"] += where
        slots["image" if span.kind == "image" else "text"] += where
    order = last_writes(trajectory)
    return {kind: _arness(sorted(each), order, trajectory, ks) for kind, each in slots.items() if each}


def last_writes(trajectory: Trajectory) -> list[int]:
    """The slots in the order in which they were written last; those open at the end are not among them."""
    order: dict[int, None] = {}
    for commit in trajectory.commits:
        for slot in commit.positions if commit.kind != "edit" else ():
            order.pop(slot, None)
            if commit.kind == "write":
                order[slot] = None
    return list(order)


def stats(trajectory: Trajectory, ks: Sequence[int] = KS) -> dict[str, Any]:
    """Figures of a trajectory, ready for JSON.

    `passes` counts the steps that the trajectory tells of, `commits_per_step` the slots that each of them wrote,
    `writes` all of these; `remasked` and `edited` count slots opened again and ids replaced. `logprob` sums
    what the model gave to the last writes, before temperature and cuts.
    """
    commits = trajectory.commits
    per_step = Counter({step: 0 for step in sorted({each.step for each in commits})})
    for each in _writes(commits):
        per_step[each.step] += len(each.positions)
    final = {
        slot: logprob
        for each in _writes(commits)
        for slot, logprob in zip(each.positions, each.logprobs, strict=True)
    }
    written = last_writes(trajectory)
    slots = sum(span.max_tokens for span in trajectory.canvas.spans)
    return {
        "slots": slots,
        "written": len(written),
        "open": slots - len(written),
        "passes": len(per_step),
        "writes": per_step.total(),
        "commits_per_step": list(per_step.values()),
        "parallelism": per_step.total() / len(per_step) if per_step else None,
        "remasked": sum(len(each.positions) for each in commits if each.kind == "remask"),
        "edited": sum(len(each.positions) for each in commits if each.kind == "edit"),
        "logprob": sum(final[slot] for slot in written),
        "arness": {kind: asdict(each) for kind, each in arness(trajectory, ks).items()},
    }


def _arness(slots: list[int], order: list[int], trajectory: Trajectory, ks: Sequence[int]) -> Arness:
    if any(k < 1 for k in ks):
        raise ValueError(f"AR-ness is defined for k of at least 1, not for {list(ks)}")
    rank = {slot: index for index, slot in enumerate(slots)}
    ranks = [rank[slot] for slot in order if slot in rank]
    runs, depths = _runs(ranks), _depths(ranks, len(slots))
    passes = {each.step for each in _writes(trajectory.commits) if not rank.keys().isdisjoint(each.positions)}
    writes = sum(slot in rank for each in _writes(trajectory.commits) for slot in each.positions)
    return Arness(
        len(slots),
        len(ranks),
        {k: _share(run > k for run in runs[k:]) for k in ks},
        {k: _share(depth < k for depth in depths) for k in ks},
        writes / len(passes) if passes else None,
    )


def _runs(ranks: Sequence[int]) -> list[int]:
    """For each write, how many adjacent positions were written one after the other up to it, itself included."""
    runs: list[int] = []
    for t, rank in enumerate(ranks):
        runs.append(runs[-1] + 1 if t and ranks[t - 1] == rank - 1 else 1)
    return runs


def _depths(ranks: Sequence[int], slots: int) -> list[int]:
    """For each write, how many masked slots were left of it."""
    masked, depths = list(range(slots)), []
    for rank in ranks:
        place = bisect_left(masked, rank)
        depths.append(place)
        del masked[place]
    return depths


def _share(hits: Iterable[bool]) -> float | None:
    listed = list(hits)
    return sum(listed) / len(listed) if listed else None


def _writes(commits: Iterable[Commit]) -> Iterable[Commit]:
    return [each for each in commits if each.kind == "write"]
