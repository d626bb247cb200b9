"""The state that a step changes, saved and restored.

A checkpoint is of no number of processes: what is spread over them is saved whole. Random numbers, the place in the
data and the learning rate follow from the seed and the step, and so need no state of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cm3kit.publish import collect, load_state, publishing, save_state
from cm3kit.training.best import Best
from cm3kit.training.changes import changes, refuse_other_data
from cm3kit.training.guard import Guard
from cm3kit.training.muon import Muon, matrices
from cm3kit.training.observe import Observers
from cm3kit.training.parallel import is_spread, local, prepare, recompute, shard, spread, whole
from cm3kit.training.prefetch import Batches
from cm3kit.training.task import LoopSettings, Part, Task, TaskInParts, TaskWithData, TaskWithState, Warn
from cm3kit_tokenizers.errors import ConfigError


class Progress:
    """Weights, averages, moments, and all other state of a run; the same in every process."""

    def __init__(self, task: Task, settings: LoopSettings, accelerator: Accelerator) -> None:
        self.task, self.settings, self.accelerator = task, settings, accelerator
        if settings.recompute:
            recompute(task.model)
        self._plain: nn.Module | None = None
        if settings.shard and accelerator.num_processes > 1:
            # What is previewed and exported is a whole model, for which the main process allocates memory.
            self._plain = copy.deepcopy(task.model).cpu() if self.main else None
            shard(task, accelerator)
        self.parts = list(task.parts()) if isinstance(task, TaskInParts) else [Part(_trained(task.model))]
        self.optimizer = _optimizer(self.parts, settings, task.model)
        # Weights whose gradients are clipped together.
        self.clipped = [list(each.weights) for each in self.parts]
        if len(self.parts) == 1:
            self.clipped = [list(task.model.parameters())]
        self.batches = Batches(task, settings)
        self.step, self.seconds = 0, 0.0
        self.guard, self.scale = Guard(settings.spike), 1.0
        self.best, self.observers = Best(settings.best), Observers([])
        self.accumulate, self.left_out = settings.accumulate, set[int]()
        self.saved: int | None = None
        self.whole = True  # False inside a step, when weights, moments and averages are not of one step
        self.rehearsed: tuple[int, bool] | None = (
            None  # micro-batches, and with moments, that have found room
        )
        self.updating = False  # True while weights and moments are changed
        self.wrapped = prepare(task, accelerator)
        self.ema = {
            name: each.detach().float().clone() if each.is_floating_point() else each.detach().clone()
            for name, each in task.model.state_dict().items()
        }
        self._data: str | None = None

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def data(self) -> str:
        """The fingerprint of the data, or nothing where the task has none."""
        if self._data is None:
            self._data = self.task.fingerprint() if isinstance(self.task, TaskWithData) else ""
        return self._data

    def save(self, run: Path) -> None:
        """Publish `step-…`, unless this step is there already, and remove older ones.

        Every process has to call it, and the main one writes.
        """
        if self.saved == self.step:
            return
        if self.main or is_spread(self.task.model):
            tensors, own = self._tensors(), dict[str, Any]()
            if isinstance(self.task, TaskWithState):
                more, told = self.task.extra_state()
                own = dict(told)
                tensors |= {f"task/{name}": each.detach() for name, each in more.items()}
            if self.main:
                with publishing(run / f"step-{self.step:08d}") as folder:
                    save_state(folder, tensors, self._state() | ({"task": own} if own else {}))
                collect(run, keep=self.settings.keep, spare=self.best.folders)
        self.saved = self.step

    def _tensors(self) -> dict[str, Tensor]:
        moments = {
            f"{index}.{key}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        groups = {"model": self.task.model.state_dict(), "ema": self.ema, "optimizer": moments}
        tensors = {
            f"{group}/{name}": each.detach()
            for group, those in groups.items()
            for name, each in those.items()
        }
        # Weights that are one (tied embeddings) stay one when they are made whole.
        first: dict[int, str] = {}
        one = {
            f"model/{name}": first.setdefault(id(each), f"model/{name}")
            for name, each in self.task.model.named_parameters(remove_duplicate=False)
        }
        made = {name: whole(each) for name, each in tensors.items() if one.get(name, name) == name}
        return {name: made[one.get(name, name)] for name in tensors}

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step, "seconds": self.seconds, "scale": self.scale, "accumulate": self.accumulate,
            "guard": self.guard.state(), "best": self.best.state(), "left_out": sorted(self.left_out),
            "observers": self.observers.state(), "processes": self.accelerator.num_processes, "data": self.data,
            "loop": self.settings.model_dump(mode="json"), "torch": torch.__version__,
        }  # fmt: skip

    def load(self, folder: Path, warn: Warn = lambda line: None) -> None:
        """Load a checkpoint, in every process; `warn` gets lines on what differs from before.

        Raises:
            ConfigError: it is of another model, or of other data.
        """
        tensors, state = load_state(folder)
        refuse_other_data(folder, state, self.data)
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}, "task": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        now = self.task.model.state_dict()
        try:
            self.task.model.load_state_dict(
                {n: spread(each, now.get(n)) for n, each in groups["model"].items()}
            )
        except RuntimeError as error:
            raise ConfigError(
                f"{folder} is of another model than this recipe's: {str(error).splitlines()[-1].strip()}"
                " Choose another --output or pass --no-resume.",
                code="bad_config",
            ) from error
        self.ema = {name: spread(groups["ema"][name], each) for name, each in self.ema.items()}
        self._load_moments(groups["optimizer"])
        if isinstance(self.task, TaskWithState):
            self.task.load_extra_state(groups["task"], state.get("task", {}))
        for line in changes(state, self.settings, self.accelerator.num_processes):
            warn(line)
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.scale = float(state.get("scale", 1.0))
        if state.get("processes") == self.accelerator.num_processes:
            self.accumulate = max(self.accumulate, int(state["accumulate"]))
        self.left_out = set(state.get("left_out", ()))
        self.guard.restore(state.get("guard", {}))
        self.best.restore(state.get("best", {}))
        self.observers.restore(state.get("observers", {}))
        self.saved = self.step

    def _load_moments(self, moments: dict[str, Tensor]) -> None:
        saved = self.optimizer.state_dict()
        saved["state"] = {}
        weights = [each for group in self.optimizer.param_groups for each in group["params"]]
        for name, tensor in moments.items():
            index, _, key = name.partition(".")
            like = weights[int(index)] if tensor.ndim and int(index) < len(weights) else None
            saved["state"].setdefault(int(index), {})[key] = spread(tensor, like)
        self.optimizer.load_state_dict(saved)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module | None]:
        """The model with its moving-average weights, in eval mode, for previews and export.

        Every process has to ask, and all but the main one get None.
        """
        spread_out = is_spread(self.task.model)
        averages = {name: whole(each) for name, each in self.ema.items()} if spread_out else self.ema
        if not self.main:
            yield None
            return
        trained = self.task.model
        model = self._plain if spread_out and self._plain is not None else trained
        live = (
            {} if spread_out else {name: each.detach().clone() for name, each in model.state_dict().items()}
        )
        model.load_state_dict({name: averages[name].to(each) for name, each in model.state_dict().items()})
        model.eval()
        self.task.model = model  # type: ignore[misc]
        try:
            yield model
        finally:
            self.task.model = trained  # type: ignore[misc]
            if not spread_out:
                model.load_state_dict(live)
            model.train()

    @torch.no_grad()
    def follow(self) -> None:
        """Update the averages; early on with a smaller decay, so that they are useful in short runs."""
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        moving: list[tuple[Tensor, Tensor]] = []
        for name, each in self.task.model.state_dict().items():
            if each.is_floating_point():
                moving.append((local(self.ema[name]), local(each).float()))
            else:
                self.ema[name].copy_(each)
        if moving:
            averages, now = zip(*moving, strict=True)
            torch._foreach_lerp_(averages, now, 1 - decay)


def _optimizer(parts: list[Part], settings: LoopSettings, model: nn.Module) -> torch.optim.Optimizer:
    orthogonal = matrices(model) if settings.optimizer == "muon" else set[int]()
    groups: list[dict[str, Any]] = []
    for part in parts:
        own = {"factor": part.rate, "betas": part.betas or settings.betas}
        wide = [each for each in part.weights if each.ndim > 1]
        groups.append({"params": [each for each in wide if id(each) not in orthogonal], **own})
        plain = [each for each in part.weights if each.ndim <= 1]
        groups.append({"params": plain, "weight_decay": 0.0, **own})
        if orthogonal:
            groups.append({"params": [each for each in wide if id(each) in orthogonal], "muon": True, **own})
    if orthogonal:
        return Muon(groups, settings.learning_rate, settings.betas, settings.weight_decay)
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [each for each in model.parameters() if each.requires_grad]
