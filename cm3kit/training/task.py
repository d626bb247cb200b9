"""What the loop trains, and how long, how fast and how carefully."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field
from torch import Generator, Tensor, nn

from cm3kit.config import Settings
from cm3kit.training.figures import Figure
from cm3kit.training.precision import Precision


class LoopSettings(Settings):
    """How long, how fast, how careful.

    `batch_size` is the rows of a step, over all processes and micro-batches; `accumulate` is how many micro-batches
    each process cuts its share into. `shard` spreads weights and moments over the processes (FSDP2) instead of copying
    them. `recompute` saves memory by computing activations twice.
    `optimizer` muon is for the matrices of layers, and AdamW for all else (see `muon.py`).
    `workers` processes draw batches ahead of time; 0 draws each when it is its turn. The batches are the same.
    `warmup` is a share of the steps; the rate then falls on a cosine to `final` times `learning_rate`.
    `precision` auto is bf16 where the processor computes in it, else fp32: emulated bf16 is many times slower.
    Every `preview_every` steps, and at the last, a preview is drawn (0: never).
    Every `validate_every` steps (0: never) the averaged weights are tried on `validate_on` held-out documents.
    `trackers` get every line of the log.
    Three steps in a row that are not finite lead back to the last checkpoint at half the rate, `rollbacks` times.
    A loss further above the median of the last 128 than `spike` times their spread (the standard deviation that their
    quartiles tell of) is a spike: its step is taken all the same (`ignore`), changes nothing (`skip`), leads back to
    the last checkpoint and is left out on the second way (`roll_back`), or ends training (`stop`).
    `best` is a figure of the log, such as `loss`: the checkpoint up to which it was lowest is kept besides the last.
    """

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    workers: int = Field(0, ge=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    warmup: float = Field(0.05, ge=0, le=1)
    final: float = Field(0.02, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    precision: Precision = "auto"
    compile: bool = False
    shard: bool = False
    recompute: bool = False
    seed: int = 0
    rollbacks: int = Field(2, ge=0)
    on_spike: Literal["ignore", "skip", "roll_back", "stop"] = "ignore"
    spike: float = Field(10.0, gt=0)
    save_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)
    best: str | None = None
    preview_every: int = Field(500, ge=0)
    log_every: int = Field(20, ge=1)
    validate_every: int = Field(500, ge=0)
    validate_on: int = Field(64, ge=1)
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()


class Task(Protocol):
    """What is trained."""

    @property
    def model(self) -> nn.Module:
        """What is trained, as one module."""

    def batch(self, rng: Generator, size: int) -> Any:
        """Draw a batch, from `rng` alone."""

    def loss(
        self, model: nn.Module, batch: Any, step: int, rng: Generator
    ) -> tuple[Tensor, Mapping[str, Figure]]:
        """The scalar loss of a batch, and figures for the log, which may stay on the device (`training.figures`)."""

    def preview(self, model: nn.Module, path: Path) -> None:
        """Write a picture or page that shows how far training has come; `path` has no suffix yet."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the trained part as it is used afterwards."""


@dataclass(frozen=True, slots=True)
class Part:
    """Weights that learn in a way of their own, and whose gradients are clipped by themselves.

    `rate` is a factor on the learning rate; `betas` are those of the settings unless given.
    """

    weights: Sequence[nn.Parameter]
    rate: float = 1.0
    betas: tuple[float, float] | None = None


@runtime_checkable
class TaskInParts(Protocol):
    """A task whose weights do not all learn alike, such as two networks against each other."""

    def parts(self) -> Sequence[Part]:
        """Every weight that is trained, in one part each."""


@runtime_checkable
class TaskInOrder(Protocol):
    """A task whose data have an order of their own, such as the rows of shards."""

    def seek(self, step: int, size: int, process: int, processes: int) -> None:
        """Go to the `size` rows that one of several processes takes at a step; the loop takes those of all."""


@runtime_checkable
class TaskInShares(Protocol):
    """A task whose loss is a sum over rows, divided by something of the whole batch."""

    def share(self, batch: Any, rows: slice) -> Any:
        """Some rows of a batch, such that the losses of all shares add up to that of the batch."""


@runtime_checkable
class TaskWithRows(Protocol):
    """A task in shares whose batches have a variable number of rows, not that of the settings."""

    def batch_rows(self, batch: Any) -> tuple[int, int]:
        """Rows of a batch, and how many the memory holds at once; `share` is asked for slices of them, maybe empty."""


@runtime_checkable
class TaskWithState(Protocol):
    """A task with state besides its weights that a checkpoint has to hold; the same in every process."""

    def extra_state(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """What goes into the next checkpoint: tensors, and what JSON can hold."""

    def load_extra_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take it up again; nothing of it where the checkpoint has none."""


@runtime_checkable
class TaskWithNames(Protocol):
    """A task that can say what a batch is of."""

    def names(self, rng: Generator, size: int) -> list[str]:
        """The names of what `batch` draws from the same `rng`."""


@runtime_checkable
class TaskWithData(Protocol):
    """A task that can tell its data from others."""

    def fingerprint(self) -> str:
        """A hash that changes if a document is added, taken away, or drawn more often; not with the machine."""


@runtime_checkable
class TaskWithWork(Protocol):
    """A task that can count the tokens of a step."""

    def work(self, rows: int) -> tuple[int, float]:
        """Tokens of a batch of so many rows, and FLOPs of a step on it (`training.speed`)."""


@runtime_checkable
class TaskWithHeldOut(Protocol):
    """A task that has something to be tried on that it is not trained on."""

    def validate(self, model: nn.Module, count: int) -> dict[str, float]:
        """Figures of a model in eval mode on `count` held-out documents or pictures; none where there are none."""


Report = Callable[[int, int, dict[str, float]], None]
Warn = Callable[[str], None]
