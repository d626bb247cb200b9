"""`train_all`: from pages to a model folder, with one progress and one report, resumable."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from cm3kit.config import dump, read_yaml, resolve
from cm3kit.pipeline.card import card, examples
from cm3kit.pipeline.held import held_figures
from cm3kit.pipeline.made import Made
from cm3kit.pipeline.plan import NAMES, Cost, Plan
from cm3kit.pipeline.planner import HELD, make_plan
from cm3kit.pipeline.report import render
from cm3kit.pipeline.request import Request
from cm3kit.pipeline.stages import prepared_folder, put_together, read_pages, stages
from cm3kit.pipeline.survey import survey
from cm3kit.publish import write_atomic
from cm3kit.quantities import duration
from cm3kit.training.interrupts import Paused
from cm3kit.training.run import locked
from cm3kit.training.speed import peak_memory
from cm3kit.training.task import Warn
from cm3kit_tokenizers.errors import ConfigError, DataError, ModelError, OutputError

Watch = Callable[[int, int, str], None]
PLAN, ASKED, TOOK, MADE, REPORT = "plan.yaml", "request.json", "took.json", "made.json", "report.html"


def train_all(
    request: Request, *, plan_only: bool = False, tell: Callable[[list[str]], None] = lambda lines: None,
    watch: Watch = lambda done, total, note: None, warn: Warn = lambda line: None,
) -> Made:  # fmt: skip
    """Make a model of pages, or resume: finished work is not repeated.

    Args:
        plan_only: stop once the plan is made; what was read stays for the next call.
        tell: gets the lines of the plan, before anything is trained.
        watch: called with (per cent done, 100, a few words).
        warn: gets lines on what is dropped, cut or taken up again.

    Raises:
        ConfigError: the request contradicts itself or the one that the folder was begun with.
        DataError: there are too few pages or pictures.
        OutputError: a model is there already, another process works there, or the disk is full.
        Paused: Ctrl-C or SIGTERM came; the same call goes on from there.
    """
    request.check()
    new, fresh = not request.output.exists(), not request.runs.exists()
    _refuse_finished(request)
    try:
        with locked(request.runs):
            return _train(request, plan_only, tell, watch, warn)
    except KeyboardInterrupt as stop:
        raise Paused(str(stop) or f"{request.output}: stopped; what is done is kept") from stop
    except (ConfigError, DataError, ModelError):
        if fresh and not (request.runs / PLAN).exists():  # refused before anything was trained
            shutil.rmtree(request.output if new else request.runs, ignore_errors=True)
        raise


def _refuse_finished(request: Request) -> None:
    if (request.output / "model_index.json").is_file() and not (request.runs / ASKED).is_file():
        raise OutputError(f"{request.output} is a model already; choose another --output.", code="exists")
    if request.output.is_dir() and not request.runs.is_dir() and any(request.output.iterdir()):
        raise OutputError(f"{request.output} holds other files; choose another --output.", code="exists")


def _train(
    request: Request, plan_only: bool, tell: Callable[[list[str]], None], watch: Watch, warn: Warn
) -> Made:
    plan = _planned(request, watch, warn)
    tell(plan.lines())
    if plan_only:
        return Made(request.output, plan)
    clock = _Clock(request.runs / TOOK, plan, watch)
    for stage in stages(request, plan):
        with clock.of(stage.name):
            if not stage.done():
                stage.act(clock.told, warn)
    with clock.of("model"):
        return _finish(request, plan, clock)


def _planned(request: Request, watch: Watch, warn: Warn) -> Plan:
    """The saved plan, or a new one."""
    asked, kept = request.runs / ASKED, request.runs / PLAN
    if asked.is_file():
        request.hold_to(json.loads(asked.read_text(encoding="utf-8")))
    if kept.is_file():
        return _placed(resolve(Plan, [read_yaml(kept)]), request)
    write_atomic(asked, json.dumps(request.saved(), indent=1).encode(), force=True)
    started = time.monotonic()
    folder = read_pages(
        request, lambda share, note: watch(0, 100, f"reading pages: {share:.0%}, {note}"), warn
    )
    found = survey(folder)
    found.check(request.pages)
    spent = time.monotonic() - started
    watch(0, 100, "trying out a few steps")
    plan = make_plan(request, folder, found, spent)
    write_atomic(kept, dump(plan).encode(), force=True)
    return plan


def _placed(plan: Plan, request: Request) -> Plan:
    """The plan with the places of its stages as this call names them: the folder may have been moved."""
    runs, prepared = request.runs, prepared_folder(request)
    parts = {"text": runs / "text/final", "image": runs / "image/final", "data": runs / "shards"}
    return plan.model_copy(
        update={
            "main": plan.main.model_copy(update=parts),
            "text": plan.text and plan.text.model_copy(update={"data": prepared}),
            "image": plan.image and plan.image.model_copy(update={"data": prepared}),
        }
    )


class _Clock:
    """Seconds of each stage, over all calls, and one progress of all of them."""

    def __init__(self, path: Path, plan: Plan, watch: Watch) -> None:
        self.path, self.plan, self.watch = path, plan, watch
        self.took: dict[str, float] = {"data": plan.costs["data"].seconds}
        with suppress(OSError, ValueError):
            self.took |= json.loads(path.read_text(encoding="utf-8"))
        self.name, self._started, self._first = "data", 0.0, 0.0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the time of a stage, however it ends."""
        self.name, self._started, self._first = name, time.monotonic(), -1.0
        self.told(0.0, "")
        try:
            yield
        finally:
            took = time.monotonic() - self._started
            self.took[name] = self.took.get(name, 0.0) + took
            with suppress(OutputError):  # a full disk is reported where it prevents writing
                write_atomic(self.path, json.dumps(self.took, indent=1).encode(), force=True)

    def told(self, share: float, note: str) -> None:
        """Report the overall progress: the planned time of stages, and the measured speed of the current one."""
        costs = self.plan.costs
        mine = costs.get(self.name, Cost()).seconds
        names = list(costs)
        place = names.index(self.name) if self.name in costs else 0
        before, after = (
            sum(costs[each].seconds for each in part) for part in (names[:place], names[place + 1 :])
        )
        spent = time.monotonic() - self._started
        if self._first < 0:  # the share at which this call resumed it
            self._first, spent = share, 0.0
        done = share - self._first
        rest = spent / done * (1 - share) if done > 0.05 else mine * (1 - share)
        words = NAMES[self.name] + (f": {note}" if note else "")
        total = max(1e-9, before + mine + after)
        self.watch(int(100 * (before + share * mine) / total), 100, f"{words}; {duration(rest + after)} left")


def _finish(request: Request, plan: Plan, clock: _Clock) -> Made:
    """The model folder with its card and report; the saved result if it exists already."""
    runs, kept = request.runs, request.runs / MADE
    if not kept.is_file():
        figures = held_figures(plan.main, runs / "decoder/final", HELD)
        words = examples(plan.main)
        said = {"figures": figures, "prompts": list(words), "peak": peak_memory(torch.device("cpu"))}
        write_atomic(kept, json.dumps(said, indent=1).encode(), force=True)
    said = json.loads(kept.read_text(encoding="utf-8"))
    made = Made(request.output, plan, dict(clock.took), said["peak"], said["figures"], *said["prompts"][:1])
    if not (request.output / "model_index.json").is_file():
        page = render(request.output.resolve().name, runs, made)
        put_together(request, plan, card(request, made), {REPORT: page.encode()})
    return made


def clean(request: Request) -> None:
    """Remove the runs of a finished model; DataError (`bad_data`) where it is not finished."""
    if not (request.output / "model_index.json").is_file():
        raise DataError(f"{request.output} is no finished model; its runs stay.", code="bad_data")
    shutil.rmtree(request.runs)
