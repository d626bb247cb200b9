"""One step: draw a batch, share it, compute its gradient, check that it is finite, and update the weights if it is.

What a step sees depends on (seed, step) alone, whatever the number of processes and micro-batches.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from cm3kit.compiling import is_compile_failure, reason
from cm3kit.rng import generator, stream
from cm3kit.training.figures import Figure, Figures, Sums, read, summed
from cm3kit.training.guard import Verdict
from cm3kit.training.parallel import gathered, is_spread, quiet, whole
from cm3kit.training.progress import Progress
from cm3kit.training.shares import cut
from cm3kit.training.task import LoopSettings, TaskInOrder, TaskWithNames, TaskWithRows, Warn
from cm3kit_tokenizers.errors import DataError

Found = list[tuple[float, Mapping[str, Figure]]]
NO_ROOM = ("can't allocate memory", "out of memory", "not enough memory")  # how RuntimeError says it


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a step: its figures, what it was judged to be, and whether any process was asked to stop.

    Figures that the task left on the device are fetched when one of them is asked for.
    """

    figures: Mapping[str, float]
    verdict: Verdict
    asked: bool


class Uncompiled(Exception):
    """The model could not be compiled, of which nothing is left; its line says why."""


def one_step(progress: Progress, model: nn.Module, asked: Sequence[int], warn: Warn) -> Done:
    """Take a step; where the memory is not enough, with smaller micro-batches, which leaves the batch as it is.

    Args:
        asked: signals to stop, which may come while the step is taken.

    Raises:
        DataError: single rows do not fit either (`no_memory`).
        Uncompiled: the step has to be taken with `progress.wrapped` itself.
    """
    while True:
        before = [each.clone() for each in progress.task.model.buffers()]
        rehearsed = _is_rehearsed(progress)
        told = "" if rehearsed else _rehearse(progress)
        if not rehearsed:
            _forget(progress, before)
        if not told:
            try:
                return _attempt(progress, model, asked, before)
            except Exception as error:
                # A step that is half taken cannot be taken again.
                if progress.updating:
                    raise
                if not isinstance(error, RuntimeError) or not _is_out_of_memory(error):
                    if model is progress.wrapped or not is_compile_failure(error):
                        raise
                    _forget(progress, before)
                    raise Uncompiled(reason(error)) from error
                told, rehearsed = _first_line(error), True
        # Only here, where the error no longer holds on to what the step has computed.
        _forget(progress, before)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _make_room(progress, told, warn, together=not rehearsed)


def _is_rehearsed(progress: Progress) -> bool:
    """Whether a step of such micro-batches has found room in every process, with the moments that there are now.

    Where one of several processes runs out of memory, the others are in the middle of adding up gradients and would
    wait for it for ever. So the first steps are tried out before, in each process by itself. Where weights are spread,
    layers wait for one another and that is not possible; where the model is compiled, it would be compiled twice.
    """
    if progress.accelerator.num_processes == 1 or progress.settings.compile or is_spread(progress.task.model):
        return True
    return progress.rehearsed == (progress.accumulate, bool(progress.optimizer.state))


def _rehearse(progress: Progress) -> str:
    """Find this process's gradients for nothing; why one of all processes could not, or nothing where all could."""
    told = ""
    try:
        rng, batch = progress.batches.take(progress.step)
        # DDP's wrapper waits for the others even where it adds nothing up: for buffers, and to arrange its buckets.
        _gradients(progress, progress.task.model, batch, rng)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        told = _first_line(error)
    progress.rehearsed = progress.accumulate, bool(progress.optimizer.state)
    return next(filter(None, gathered(progress.accelerator, told)), "")


def _attempt(progress: Progress, model: nn.Module, asked: Sequence[int], before: list[Tensor]) -> Done:
    settings, step = progress.settings, progress.step
    for group in progress.optimizer.param_groups:
        rate = settings.learning_rate * schedule(step / settings.steps, settings) * progress.scale
        group["lr"] = rate * group["factor"]
    rng, batch = progress.batches.take(progress.step)
    progress.whole = False
    loss, found = _gradients(progress, model, batch, rng)
    loss, stop, found = _together(progress, loss, found, bool(asked))
    progress.guard.look(Figures({}, found), progress.task.model)
    # The one place of a step where the processor waits for the device.
    loss_now, norm, stopped = torch.stack([loss, _clip(progress).to(loss), stop]).tolist()
    verdict = progress.guard.judge(loss_now, norm)
    if _is_sound(progress, verdict):
        progress.updating = True
        progress.optimizer.step()
        progress.follow()
        progress.updating = False
    elif verdict != "not finite":
        _put_back(progress.task.model, before)
    progress.step += 1
    progress.whole = True
    rate = progress.optimizer.param_groups[0]["lr"]
    return Done(Figures({"loss": loss_now, "grad_norm": norm, "lr": rate}, found), verdict, stopped > 0)


def _gradients(progress: Progress, model: nn.Module, batch: Any, rng: Generator) -> tuple[Tensor, Found]:
    """Gradients of this process's share, micro-batch by micro-batch, with its loss and its figures."""
    step, who = progress.step, progress.accelerator
    rows, count = _cutting(progress, batch)
    first = who.process_index * count
    mine = cut(progress.task, batch, rows, who.num_processes * count)[first : first + count]
    progress.optimizer.zero_grad()
    seed = int(torch.randint(2**62, (), generator=rng))
    losses, found = list[Tensor](), Found()
    for number, share in enumerate(mine):
        last = number == len(mine) - 1
        with quiet(progress.wrapped, who, last):
            with _dropout_from(seed, first + number, who.device), who.autocast():
                # Each share sees the random numbers that the whole batch would.
                own = rng if len(mine) == 1 else rng.clone_state()
                value, figures = progress.task.loss(model, share.batch, step, own)
            # Gradients of processes are averaged, and ours are to be added up.
            factor = share.factor * who.num_processes
            who.backward(value if factor == 1 else value * factor)
        losses.append(value.detach().to(_exact(who.device)) * share.factor)
        found.append((share.part, figures))
    return torch.stack(losses).sum(), found


def _exact(device: torch.device) -> torch.dtype:
    """The widest numbers that a device adds."""
    return torch.float32 if device.type == "mps" else torch.float64


def _together(progress: Progress, loss: Tensor, found: Found, asked: bool) -> tuple[Tensor, Tensor, Found]:
    """Loss over all processes, how many of them were asked to stop, and the figures."""
    who = progress.accelerator
    if who.num_processes == 1:
        return loss, loss.new_tensor(float(asked)), found
    if any(isinstance(each, Sums) for _, figures in found for each in figures.values()):
        total, stop, sums = summed(loss, asked, found)
        return total, stop, [(1.0, sums)]
    everyone = gathered(who, (loss.item(), read(found), asked))
    total = loss.new_tensor(sum(each for each, _, _ in everyone))
    stop = loss.new_tensor(float(sum(each for _, _, each in everyone)))
    return total, stop, [each for _, theirs, _ in everyone for each in theirs]


def _cutting(progress: Progress, batch: Any) -> tuple[int, int]:
    """Rows that a batch is cut by, and micro-batches of each process."""
    task, processes = progress.task, progress.accelerator.num_processes
    if not isinstance(task, TaskWithRows):
        return progress.settings.batch_size, progress.accumulate
    rows, most = task.batch_rows(batch)
    count = max(progress.accumulate, -(-rows // (most * processes)))
    return max(rows, count * processes), count


def names(progress: Progress, step: int, most: int = 4) -> str:
    """What the batch of a step was drawn from, for a message; nothing where the task cannot say."""
    task, settings = progress.task, progress.settings
    if not isinstance(task, TaskWithNames):
        return ""
    if isinstance(task, TaskInOrder):
        task.seek(step, settings.batch_size, 0, 1)
    found = list(dict.fromkeys(task.names(generator(settings.seed, step, 0), settings.batch_size)))
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f" ({', '.join(found[:most])}{more})"


@contextmanager
def _dropout_from(seed: int, share: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, which dropout draws from, and restore them afterwards."""
    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        for each in (torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus)):
            each.manual_seed(stream(seed, share) if share else seed)
        yield


def _clip(progress: Progress) -> Tensor:
    """Clip the gradients, those of each part by themselves, and return the length of all before."""
    clip = nn.utils.clip_grad_norm_
    lengths = [whole(clip(each, progress.settings.clip)) for each in progress.clipped]
    return lengths[0] if len(lengths) == 1 else torch.stack(lengths).norm()


def _is_sound(progress: Progress, verdict: Verdict) -> bool:
    if verdict == "spike" and progress.settings.on_spike != "ignore":
        return False
    return verdict != "not finite" and progress.step not in progress.left_out


def _put_back(model: nn.Module, before: list[Tensor]) -> None:
    with torch.no_grad():
        for each, old in zip(model.buffers(), before, strict=True):
            each.copy_(old)


def _forget(progress: Progress, before: list[Tensor]) -> None:
    """Leave nothing of a step that is not taken."""
    _put_back(progress.task.model, before)
    progress.optimizer.zero_grad()


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(each in str(error) for each in NO_ROOM)


def _first_line(error: RuntimeError) -> str:
    return str(error).split("\n")[0][:100] or type(error).__name__


def _make_room(progress: Progress, told: str, warn: Warn, together: bool) -> None:
    """Twice as many micro-batches; DataError where that cannot be, or where not all processes can be told."""
    processes, rows = progress.accelerator.num_processes, progress.settings.batch_size
    now, more = progress.accumulate, min(2 * progress.accumulate, rows // processes)
    if more <= now or (processes > 1 and not together):
        advice = (
            f"set loop.accumulate={more}, which keeps the batch as it is, and rerun" if more > now else ""
        )
        raise DataError(
            f"step {progress.step + 1} does not fit in the memory ({told});"
            f" {advice or 'set loop.recompute=true or take a smaller model'}.",
            code="no_memory",
        )
    progress.accumulate = more
    warn(
        f"step {progress.step + 1} does not fit in the memory; going on with {more} micro-batches instead of {now},"
        " and the same batch"
    )


def schedule(done: float, settings: LoopSettings) -> float:
    """Factor on the learning rate when a share `done` of the steps is behind."""
    if done < settings.warmup:
        return min(1.0, (done + 1 / settings.steps) / settings.warmup)
    left = (done - settings.warmup) / max(1e-9, 1 - settings.warmup)
    return settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, left)))
