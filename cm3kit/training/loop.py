"""The training loop: one function for every task and any number of processes, with checkpoints that survive a crash.

What a step sees depends on (seed, step) alone, so a resumed run repeats the run that was not interrupted.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cm3kit.publish import make_folder, newest, publishing
from cm3kit.targets import refuse_existing
from cm3kit.temporaries import sweep
from cm3kit.training.guard import PATIENCE
from cm3kit.training.interrupts import Paused, interrupts_wait
from cm3kit.training.observe import HELD, LogFile, Observer, Observers, Reporter, Seen
from cm3kit.training.parallel import agreed
from cm3kit.training.precision import accelerator
from cm3kit.training.progress import Progress as Progress
from cm3kit.training.step import Done, Uncompiled, names, one_step
from cm3kit.training.step import schedule as schedule
from cm3kit.training.task import LoopSettings as LoopSettings
from cm3kit.training.task import Report, TaskWithHeldOut, Warn
from cm3kit.training.task import Task as Task
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError


def train(
    task: Task, settings: LoopSettings, run: Path, *, resume: bool = True, max_steps: int | None = None,
    device: str = "auto", report: Report = lambda step, total, figures: None, warn: Warn = lambda line: None,
    observers: Sequence[Observer] = (),
) -> Path:  # fmt: skip
    """Train to `settings.steps` (or stop after `max_steps`), and return the folder of the exported result.

    With several processes each has to call it, and the main one writes.

    Args:
        run: gets `step-…` checkpoints, `previews/`, `log.jsonl`, and `final/` when training is done.
        resume: go on from the newest whole checkpoint.
        observers: called after every step, behind the log and `report`, in the main process.

    Raises:
        ConfigError: the checkpoint is of another model or of other data; or one of several processes cannot compile
            the model.
        DataError: the loss or its gradient was not finite three times in a row, and going back did not help or there
            was nothing to go back to (`not_finite`); it jumped, and the settings say to stop (`unstable`); or a
            single row does not fit in the memory (`no_memory`).
        OutputError: `run` holds what this training would have to overwrite (`exists`), or cannot be written.
        Paused: Ctrl-C or SIGTERM came, and all steps are saved. A KeyboardInterrupt that is no Paused lost some.
    """
    progress = Progress(task, settings, accelerator(settings.precision, device))
    every, warn = settings.log_every, warn if progress.main else lambda line: None
    watching: list[Observer] = [LogFile(run / "log.jsonl", every), Reporter(report, every), *observers]
    progress.observers = Observers(watching if progress.main else [])
    _take_up(progress, run, resume, warn)
    progress.observers.begin(progress.step, settings.steps)
    try:
        _train_on(
            progress, run, settings.steps if max_steps is None else min(settings.steps, max_steps), warn
        )
    finally:
        progress.observers.end()
    progress.save(run)
    return _finish(progress, run) if progress.step == settings.steps else run


def _take_up(progress: Progress, run: Path, resume: bool, warn: Warn) -> None:
    """Resume from the newest valid checkpoint, if `resume` is set and there is one."""
    found: Path | None = None
    if progress.main:
        make_folder(run)
        sweep(run)
        found = newest(run, warn=warn)
    found = agreed(progress.accelerator, found)
    if found is not None and resume:
        progress.load(found, warn)
        warn(f"resuming from {found.name}")
    if progress.main:
        _refuse_overwriting(progress, run, found)
        _set_damaged_aside(run, found)


def _train_on(progress: Progress, run: Path, last: int, warn: Warn) -> None:
    model: nn.Module = progress.wrapped
    if progress.settings.compile:
        model = cast(nn.Module, torch.compile(model))
    # One process may be interrupted between steps, where it is drawing previews or saving. Several have to agree on
    # the step after which they stop, or they would wait for each other forever.
    many = progress.accelerator.num_processes > 1
    clock = time.perf_counter()
    try:
        waiting: AbstractContextManager[list[int]] = interrupts_wait() if many else nullcontext([])
        with waiting as asked:
            while progress.step < last:
                start = time.perf_counter()
                inner: AbstractContextManager[Any] = nullcontext() if many else interrupts_wait()
                try:
                    with inner:
                        done = one_step(progress, model, asked, warn)
                except Uncompiled as why:
                    model = _uncompiled(progress, why, warn)
                    continue
                if not _went_back(progress, run, done, warn):
                    now = time.perf_counter()
                    progress.seconds, clock = progress.seconds + now - clock, now
                    _after_step(progress, run, done.figures, now - start, warn)
                if done.asked:
                    progress.save(run)
                    raise _paused(progress)
    except KeyboardInterrupt as stop:
        if isinstance(stop, Paused) or many or not _save_what_is_whole(progress, run, warn):
            raise
        raise _paused(progress) from stop


def _uncompiled(progress: Progress, why: Uncompiled, warn: Warn) -> nn.Module:
    """The model as it is; ConfigError (`bad_value`) in one of several processes, which have to do alike."""
    if progress.accelerator.num_processes > 1:
        raise ConfigError(
            f"the model cannot be compiled ({why}); set loop.compile=false.", code="bad_value"
        ) from why
    warn(f"training goes on uncompiled, and slower ({why}); loop.compile=false does without")
    return progress.wrapped


def _paused(progress: Progress) -> Paused:
    return Paused(f"stopped after step {progress.step} of {progress.settings.steps}, which is saved")


def _refuse_overwriting(progress: Progress, run: Path, found: Path | None) -> None:
    """Refuse before training, not after hours of it."""
    if found is not None and progress.saved is None:
        refuse_existing(found, "choose another --output, or resume from it")
    if progress.step < progress.settings.steps:
        refuse_existing(run / "final", "remove it or choose another --output to train on")


def _set_damaged_aside(run: Path, found: Path | None) -> None:
    """Rename checkpoints after the newest whole one, as training will write to their names again."""
    for folder in run.glob("step-*"):
        if found is None or folder.name > found.name:
            aside = run / f"damaged-{folder.name}"
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def _save_what_is_whole(progress: Progress, run: Path, warn: Warn) -> bool:
    if not progress.whole:
        warn(f"stopped inside step {progress.step + 1}; training will resume from the last checkpoint")
        return False
    try:
        progress.save(run)
    except Cm3kitError as error:
        warn(f"the steps since the last checkpoint are lost: {error}")
        return False
    return True


def _went_back(progress: Progress, run: Path, done: Done, warn: Warn) -> bool:
    """Handle a bad step; True where that led back to a checkpoint."""
    settings, step = progress.settings, progress.step
    if progress.guard.spent:
        _go_back(progress, run, warn)
        return True
    if done.verdict != "spike" or settings.on_spike == "ignore" or step - 1 in progress.left_out:
        return False
    told = f"the loss of step {step} is {done.figures['loss']:.4g}, far above those before it"
    of = names(progress, step - 1)
    if settings.on_spike == "stop":
        raise DataError(
            f"{told}{of}; try a lower loop.learning_rate, or loop.on_spike=skip.", code="unstable"
        )
    found = _newest(progress, run, warn) if settings.on_spike == "roll_back" else None
    if found is None:
        warn(f"{told}{of}; the step is skipped")
        return False
    left_out = progress.left_out | {step - 1}
    progress.load(found)
    progress.left_out |= left_out
    progress.observers.begin(progress.step, settings.steps)
    warn(f"{told}{of}; going back to {found.name}, to go on without it")
    return True


def _go_back(progress: Progress, run: Path, warn: Warn) -> None:
    """Resume the newest checkpoint at a lower learning rate; DataError where that did not help or is not possible."""
    settings, guard, step, scale = progress.settings, progress.guard, progress.step, progress.scale
    found = _newest(progress, run, warn)
    if found is None or scale <= 0.5**settings.rollbacks:
        raise DataError(
            f"the loss or its gradient was not finite at {PATIENCE} steps up to {step} ({guard.culprit};"
            f" the last batch was{names(progress, step - 1) or ' unnamed'}); try a lower loop.learning_rate.",
            code="not_finite",
        )
    progress.load(found)
    progress.scale = scale / 2
    guard.forgive()
    progress.observers.begin(progress.step, settings.steps)
    warn(
        f"{guard.culprit} was not finite at {PATIENCE} steps up to {step}{names(progress, step - 1)}; going back to"
        f" {found.name} with {progress.scale:g} of the learning rate"
    )


def _newest(progress: Progress, run: Path, warn: Warn) -> Path | None:
    return agreed(progress.accelerator, newest(run, warn=warn) if progress.main else None)


def _after_step(progress: Progress, run: Path, figures: Mapping[str, float], took: float, warn: Warn) -> None:
    step, settings = progress.step, progress.settings
    validated = bool(settings.validate_every) and step % settings.validate_every == 0
    if validated:
        figures = {**figures, **_validate(progress)}
    progress.observers.saw(
        Seen(step, settings.steps, figures, took, progress.seconds, settings.batch_size, validated)
    )
    progress.best.add(figures)
    if step % settings.save_every == 0 and not progress.guard.bad:  # what follows may lead back here
        progress.best.settle(step)
        progress.save(run)
    every = settings.preview_every
    if every and (step % every == 0 or step == settings.steps):
        _preview(progress, run, warn)


def _validate(progress: Progress) -> dict[str, float]:
    """Metrics of the averaged weights on held-out data, in the main process only."""
    if not isinstance(progress.task, TaskWithHeldOut):
        return {}
    with progress.averaged() as model:
        found = progress.task.validate(model, progress.settings.validate_on) if model is not None else {}
    return {HELD + name: value for name, value in found.items()}


def _preview(progress: Progress, run: Path, warn: Warn) -> None:
    with progress.averaged() as model:
        if model is None:
            return
        (run / "previews").mkdir(exist_ok=True)
        try:
            progress.task.preview(model, run / "previews" / f"step-{progress.step:06d}")
        except Cm3kitError as error:  # a failed preview must not end the run
            warn(f"no preview of step {progress.step}: {error}")


def _finish(progress: Progress, run: Path) -> Path:
    final = run / "final"
    if agreed(progress.accelerator, final.exists()):
        return final
    with progress.averaged() as model:
        if model is not None:
            with publishing(final) as folder:
                progress.task.export(model, folder)
    return final
