"""Messages of the commands about the diffusion decoder: schedules, caches, trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from cm3kit_cli.render import Reply

if TYPE_CHECKING:
    from cm3kit.batch.work import Saved


def schedule_of(boards: Sequence[Sequence[Sequence[int]]]) -> Reply:
    """The answer to --show-schedule: how many positions each pass of each block will write."""
    data = [
        {
            "places": sum(map(sum, blocks)),
            "passes": sum(map(len, blocks)),
            "blocks": [list(block) for block in blocks],
        }
        for blocks in boards
    ]
    lines = []
    for number, (board, blocks) in enumerate(zip(data, boards, strict=True)):
        lines.append(f"canvas {number}: {board['places']} positions in {board['passes']} passes")
        several = len(blocks) > 1
        lines += [
            f"{f'  block {index}: ' if several else '  '}{_runs(each)}" for index, each in enumerate(blocks)
        ]
    return Reply({"boards": data}, tuple(lines))


def told(saved: Saved) -> dict[str, Any]:
    """A line on the passes of a job, if there is any."""
    data: dict[str, Any] = {"trajectories": saved.trajectories} if saved.trajectories else {}
    return data | ({"verification": saved.verification} if saved.verification else {})


def notes(saved: Saved) -> list[str]:
    """The result of `--verify-cache` as a line of text."""
    found = saved.verification
    if not found:
        return []
    return [
        f"cache: {found['passes']} passes and {found['slots']} positions compared, {found['flips']} best tokens"
        f" differ, scores by at most {found['largest']:.2g}"
    ]


def _runs(counts: Sequence[int]) -> str:
    """Counts in order; more than two equal ones in a row as `count × times`."""
    out: list[str] = []
    for count, run in groupby(counts):
        times = len(list(run))
        out += [f"{count} × {times}"] if times > 2 else [str(count)] * times
    return ", ".join(out)
