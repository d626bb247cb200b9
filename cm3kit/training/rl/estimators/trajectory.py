"""Every pass in the state that it saw (CJ-GRPO, arXiv:2509.23924; with `shrink` TraceRL, arXiv:2509.06949)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Generator

from cm3kit.training.rl.episode import Episode, View, Write
from cm3kit.training.rl.estimators import Estimator, EstimatorSettings, Plan, estimator


class TrajectorySettings(EstimatorSettings):
    """`shrink` passes in a row count as one, in the state before the first of them."""

    name: str = "trajectory"
    shrink: int = Field(1, ge=1)


@estimator("trajectory")
class Trajectory(Estimator):
    """log p(token | the canvas when it was written): the only estimate whose gradient is that of the policy.

    The order of writing is taken as given: the ranking of positions has no likelihood and gets no gradient.
    """

    Settings: ClassVar[type[EstimatorSettings]] = TrajectorySettings

    def plan(self, episode: Episode, rng: Generator) -> Plan:
        """See `Estimator`."""
        row, views, steps = list(episode.start), list[View](), list[int]()
        for number, writes in enumerate(_merged(episode, self.settings.shrink)):
            before, asked = tuple(row), dict[int, int]()
            for write in writes:
                episode.apply(row, write)
                for place, id, scored in zip(write.positions, write.ids, write.scored, strict=True):
                    if scored and write.kind == "write":
                        asked[place] = id
            if asked:
                first = len(steps)
                tokens = tuple(range(first, first + len(asked)))
                views.append(_view(episode, before, asked, tokens, writes[0]))
                steps += [number] * len(asked)
        return Plan(tuple(views), tuple(steps))


def _view(
    episode: Episode, row: tuple[int, ...], asked: dict[int, int], tokens: tuple[int, ...], write: Write
) -> View:
    start, stop = write.window or (0, len(row))
    slots = [place for place in episode.open if start <= place < stop]
    time = sum(row[place] == episode.mask for place in slots) / max(1, len(slots))
    return View(row, tuple(asked), tuple(asked.values()), tokens, (1.0,) * len(asked), time, write.window)


def _merged(episode: Episode, shrink: int) -> list[list[Write]]:
    """The writes of each `shrink` passes in a row; those of two blocks stay apart."""
    out: list[list[Write]] = []
    passes: list[int] = []
    for write in episode.writes:
        same = bool(out) and out[-1][0].window == write.window
        if same and write.step in passes:
            out[-1].append(write)
        elif same and len(passes) < shrink:
            out[-1].append(write)
            passes.append(write.step)
        else:
            out.append([write])
            passes = [write.step]
    return out
