"""The training loop: one function for every task, on accelerate, with checkpoints that survive a crash.

What a step sees depends on (seed, step) alone, so a resumed run repeats the run that was not interrupted.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cm3kit.publish import collect, load_state, newest, publishing, save_state, sweep
from cm3kit.rng import generator
from cm3kit.training.guard import PATIENCE, Guard
from cm3kit.training.interrupts import interrupts_wait
from cm3kit.training.observe import LogFile, Observer, Observers, Reporter, Seen
from cm3kit.training.precision import accelerator
from cm3kit.training.task import LoopSettings as LoopSettings
from cm3kit.training.task import Part, Report, TaskInOrder, TaskInParts, Warn
from cm3kit.training.task import Task as Task
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError, OutputError


class Progress:
    """Everything that a step changes, and how it is saved and restored."""

    def __init__(self, task: Task, settings: LoopSettings, accelerator: Accelerator) -> None:
        self.task, self.settings, self.accelerator = task, settings, accelerator
        self.parts = list(task.parts()) if isinstance(task, TaskInParts) else [Part(_trained(task.model))]
        groups: list[dict[str, Any]] = []
        for part in self.parts:
            own = {"factor": part.rate, "betas": part.betas or settings.betas}
            groups.append({"params": [each for each in part.weights if each.ndim > 1], **own})
            plain = [each for each in part.weights if each.ndim <= 1]
            groups.append({"params": plain, "weight_decay": 0.0, **own})
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.step, self.seconds = 0, 0.0
        self.guard, self.scale = Guard(), 1.0
        self.saved: int | None = None
        self.observers = Observers([])
        self.whole = True  # False inside a step, when weights, moments and averages are not of one step
        self.wrapped, self.prepared = accelerator.prepare(task.model, self.optimizer)
        self.ema = {
            name: each.detach().float().clone() if each.is_floating_point() else each.detach().clone()
            for name, each in task.model.state_dict().items()
        }

    def save(self, run: Path) -> None:
        """Publish `step-…`, unless this very step is there already, and let go of older ones."""
        if self.saved == self.step or not self.accelerator.is_main_process:
            return
        moments = {
            f"{index}.{key}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        weights = {name: each.detach() for name, each in self.task.model.state_dict().items()}
        with publishing(run / f"step-{self.step:08d}") as folder:
            state = {"step": self.step, "seconds": self.seconds, "scale": self.scale}
            state["observers"] = self.observers.state()
            save_state(folder, _flat(model=weights, ema=self.ema, optimizer=moments), state)
        self.saved = self.step
        collect(run, keep=self.settings.keep)

    def load(self, folder: Path) -> None:
        """Take up a checkpoint; ConfigError if it is of another model."""
        tensors, state = load_state(folder)
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        try:
            self.task.model.load_state_dict(groups["model"])
        except RuntimeError as error:
            raise ConfigError(
                f"{folder} is of another model than this recipe's: {str(error).splitlines()[-1].strip()}"
                " Choose another --output or pass --no-resume.",
                code="bad_config",
            ) from error
        self.ema = {name: groups["ema"][name].to(each.device) for name, each in self.ema.items()}
        saved = self.optimizer.state_dict()
        saved["state"] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, key = name.partition(".")
            saved["state"].setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(saved)
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.scale = float(state.get("scale", 1.0))
        self.observers.restore(state.get("observers", {}))
        self.saved = self.step

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with its moving-average weights, in eval mode, for previews and export."""
        model = self.task.model
        live = {name: each.detach().clone() for name, each in model.state_dict().items()}
        model.load_state_dict({name: self.ema[name].to(each.dtype) for name, each in live.items()})
        model.eval()
        try:
            yield model
        finally:
            model.load_state_dict(live)
            model.train()

    @torch.no_grad()
    def follow(self) -> None:
        """Move the averages; early on they follow faster, so that they are of use in short runs."""
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for name, each in self.task.model.state_dict().items():
            if each.is_floating_point():
                self.ema[name].lerp_(each.float(), 1 - decay)
            else:
                self.ema[name].copy_(each)


def train(
    task: Task, settings: LoopSettings, run: Path, *, resume: bool = True, max_steps: int | None = None,
    device: str = "auto", report: Report = lambda step, total, figures: None, warn: Warn = lambda line: None,
    observers: Sequence[Observer] = (),
) -> Path:  # fmt: skip
    """Train to `settings.steps` (or stop after `max_steps`), and return the folder of the exported result.

    Args:
        run: gets `step-…` checkpoints, `previews/`, `log.jsonl`, and `final/` when training is done.
        resume: go on from the newest whole checkpoint.
        observers: hear of every step, after the log and `report`.

    Raises:
        ConfigError: the checkpoint is of another model.
        DataError: the loss or its gradient was not finite three times in a row, and going back did not help or there
            was nothing to go back to (`not_finite`).
        OutputError: `run` holds what this training would have to overwrite (`exists`).
    """
    progress = Progress(task, settings, accelerator(settings.precision, device))
    every = settings.log_every
    watching = [LogFile(run / "log.jsonl", every), Reporter(report, every), *observers]
    progress.observers = Observers(watching if progress.accelerator.is_main_process else [])
    run.mkdir(parents=True, exist_ok=True)
    sweep(run)
    found = newest(run, warn=warn)
    if found is not None and resume:
        progress.load(found)
        warn(f"resuming from {found.name}")
    _refuse_overwriting(progress, run, found)
    _set_damaged_aside(run, found)
    progress.observers.begin(progress.step, settings.steps)
    last = settings.steps if max_steps is None else min(settings.steps, max_steps)
    step_model: nn.Module = progress.wrapped
    if settings.compile:
        step_model = cast(nn.Module, torch.compile(step_model))
    clock = time.perf_counter()
    try:
        while progress.step < last:
            start = time.perf_counter()
            with interrupts_wait():
                figures = _one_step(progress, step_model)
            if progress.guard.count(figures):
                _go_back(progress, run, warn)
                continue
            now = time.perf_counter()
            progress.seconds, clock = progress.seconds + now - clock, now
            _after_step(progress, run, figures, now - start, warn)
    except KeyboardInterrupt:
        _save_what_is_whole(progress, run, warn)
        raise
    finally:
        progress.observers.end()
    progress.save(run)
    return _finish(progress, run) if progress.step == settings.steps else run


def _refuse_overwriting(progress: Progress, run: Path, found: Path | None) -> None:
    """Say so before training, not after hours of it."""
    if found is not None and progress.saved is None:
        raise OutputError(
            f"{found} exists already; choose another --output, or resume from it.", code="exists"
        )
    final = run / "final"
    if final.exists() and progress.step < progress.settings.steps:
        raise OutputError(
            f"{final} exists already; remove it or choose another --output to train on.", code="exists"
        )


def _set_damaged_aside(run: Path, found: Path | None) -> None:
    """Rename checkpoints after the newest whole one, whose names training will come to again."""
    for folder in run.glob("step-*"):
        if found is None or folder.name > found.name:
            aside = run / f"damaged-{folder.name}"
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def _save_what_is_whole(progress: Progress, run: Path, warn: Warn) -> None:
    if not progress.whole:
        warn(f"stopped inside step {progress.step + 1}; training will go on from the last checkpoint")
        return
    try:
        progress.save(run)
    except Cm3kitError as error:
        warn(f"the steps since the last checkpoint are lost: {error}")


def _go_back(progress: Progress, run: Path, warn: Warn) -> None:
    """Take up the newest checkpoint at a lower rate; DataError where that has not helped or is not possible."""
    settings, guard, step, scale = progress.settings, progress.guard, progress.step, progress.scale
    found = newest(run, warn=warn)
    if found is None or scale <= 0.5**settings.rollbacks:
        raise DataError(
            f"the loss or its gradient was not finite at {PATIENCE} steps up to {step} ({guard.culprit});"
            " try a lower loop.learning_rate.",
            code="not_finite",
        )
    progress.load(found)
    progress.scale = scale / 2
    guard.forgive()
    progress.observers.begin(progress.step, settings.steps)
    warn(
        f"{guard.culprit} was not finite at {PATIENCE} steps up to {step}; going back to {found.name} with"
        f" {progress.scale:g} of the learning rate"
    )


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [each for each in model.parameters() if each.requires_grad]


def _one_step(progress: Progress, model: nn.Module) -> dict[str, float]:
    settings, step = progress.settings, progress.step
    rng = generator(settings.seed, step, progress.accelerator.process_index)
    for group in progress.optimizer.param_groups:
        rate = settings.learning_rate * schedule(step / settings.steps, settings) * progress.scale
        group["lr"] = rate * group["factor"]
    if isinstance(progress.task, TaskInOrder):
        who = progress.accelerator
        progress.task.seek(step, settings.batch_size, who.process_index, who.num_processes)
    batch = progress.task.batch(rng, settings.batch_size)
    progress.whole = False
    # Dropout can only draw from the global generators: lend them a seed for this step and put it back.
    device = progress.accelerator.device
    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        seed = int(torch.randint(2**62, (), generator=rng))
        for each in (torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus)):
            each.manual_seed(seed)
        with progress.accelerator.autocast():
            loss, figures = progress.task.loss(model, batch, step, rng)
    progress.prepared.zero_grad()
    progress.accelerator.backward(loss)
    progress.guard.look(figures, progress.task.model)
    alone = len(progress.parts) == 1
    clipped = [model.parameters()] if alone else [part.weights for part in progress.parts]
    lengths = [progress.accelerator.clip_grad_norm_(each, settings.clip).item() for each in clipped]
    value, length = loss.item(), lengths[0] if alone else math.hypot(*lengths)
    if math.isfinite(value) and math.isfinite(length):
        progress.prepared.step()
        progress.follow()
    progress.step += 1
    progress.whole = True
    return {"loss": value, "norm": length, "rate": progress.optimizer.param_groups[0]["lr"], **figures}


def _after_step(progress: Progress, run: Path, figures: dict[str, float], took: float, warn: Warn) -> None:
    step, settings = progress.step, progress.settings
    if not progress.accelerator.is_main_process:
        return
    rows = settings.batch_size * progress.accelerator.num_processes
    progress.observers.saw(Seen(step, settings.steps, figures, took, progress.seconds, rows))
    if step % settings.save_every == 0 and not progress.guard.bad:  # what follows may lead back here
        progress.save(run)
    if step % settings.preview_every == 0 or step == settings.steps:
        _preview(progress, run, warn)


def _preview(progress: Progress, run: Path, warn: Warn) -> None:
    (run / "previews").mkdir(exist_ok=True)
    try:
        with progress.averaged() as model:
            progress.task.preview(model, run / "previews" / f"step-{progress.step:06d}")
    except Cm3kitError as error:  # a picture that cannot be made is no reason to lose a run
        warn(f"no preview of step {progress.step}: {error}")


def _finish(progress: Progress, run: Path) -> Path:
    final = run / "final"
    if progress.accelerator.is_main_process and not final.exists():
        with progress.averaged() as model, publishing(final) as folder:
            progress.task.export(model, folder)
    return final


def schedule(done: float, settings: LoopSettings) -> float:
    """Factor on the learning rate when a share `done` of the steps is behind."""
    if done < settings.warmup:
        return min(1.0, (done + 1 / settings.steps) / settings.warmup)
    left = (done - settings.warmup) / max(1e-9, 1 - settings.warmup)
    return settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, left)))


def _flat(**groups: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{group}/{name}": each for group, tensors in groups.items() for name, each in tensors.items()}
