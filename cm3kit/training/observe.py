"""Observers of each step of the loop: the log, the progress line, and others.

An observer is an object with three methods. It runs in the main process alone, between steps, and outside of the time
that a step is said to take. It must not draw from a global generator, nor change what it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cm3kit.training.log import add_line, forget_after
from cm3kit.training.task import Report

HELD = "held "  # prefix of metrics of held-out data


@dataclass(frozen=True, slots=True)
class Seen:
    """One step.

    Attributes:
        step: how many steps are done, this one included.
        total: steps of the whole training.
        figures: of the whole batch, over all processes: `loss` (nats or what the task minimises), `grad_norm`,
            `lr` (the learning rate), and what the task adds. A value may be NaN or infinite. The task's may be on
            the device still: asking for one waits for the step.
        took: seconds of this step.
        seconds: of training up to here, earlier sittings of a resumed run included.
        rows: of the batch, over all processes.
        validated: whether there are figures of what is not trained on.
    """

    step: int
    total: int
    figures: Mapping[str, float]
    took: float
    seconds: float
    rows: int
    validated: bool = False

    def due(self, every: int) -> bool:
        """Whether an action that is due every `every` steps and at the last one is due now."""
        return self.step % every == 0 or self.step == self.total

    def logged(self, every: int) -> bool:
        """Whether a line of the log is due."""
        return self.due(every) or self.validated


class Observer(Protocol):
    """Watches a training."""

    def begin(self, step: int, total: int) -> None:
        """Training goes on after `step`: at the start, and again when it has gone back to a checkpoint.

        What is known of later steps is to be forgotten, as they are about to be repeated.
        """

    def saw(self, seen: Seen) -> None:
        """A step is over."""

    def end(self) -> None:
        """Training is over, or is left, be it by an error."""


@runtime_checkable
class ObserverWithState(Protocol):
    """An observer with state that a checkpoint has to hold, such as the id of a run of a tracker."""

    name: str

    def state(self) -> Mapping[str, Any]:
        """What goes into the next checkpoint, as JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state; called before `begin`, if a checkpoint has it."""


class LogFile:
    """`log.jsonl`, a line every so many steps."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def begin(self, step: int, total: int) -> None:
        """Cut off the lines of steps to come."""
        forget_after(self.path, step)

    def saw(self, seen: Seen) -> None:
        """Add a line, if one is due."""
        if seen.logged(self.every):
            add_line(self.path, seen.step, seen.seconds, seen.figures)

    def end(self) -> None:
        """Nothing is held open."""


class Reporter:
    """Calls `report(step, total, figures)` every so many steps: the progress line of the command."""

    def __init__(self, report: Report, every: int) -> None:
        self.report, self.every = report, every

    def begin(self, step: int, total: int) -> None:
        """Nothing is known of any step."""

    def saw(self, seen: Seen) -> None:
        """Report, if it is time."""
        if seen.due(self.every):
            self.report(seen.step, seen.total, dict(seen.figures))

    def end(self) -> None:
        """Nothing is held open."""


class Observers:
    """Several observers as one, and what of them a checkpoint holds."""

    def __init__(self, each: Sequence[Observer]) -> None:
        self.each = list(each)

    def begin(self, step: int, total: int) -> None:
        """Tell all."""
        for observer in self.each:
            observer.begin(step, total)

    def saw(self, seen: Seen) -> None:
        """Tell all."""
        for observer in self.each:
            observer.saw(seen)

    def end(self) -> None:
        """Tell all."""
        for observer in self.each:
            observer.end()

    def state(self) -> dict[str, Any]:
        """The state of observers by name."""
        kept = [each for each in self.each if isinstance(each, ObserverWithState)]
        return {each.name: dict(each.state()) for each in kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Tell each what it left."""
        for each in self.each:
            if isinstance(each, ObserverWithState) and each.name in state:
                each.restore(state[each.name])
