"""TensorBoard and Weights & Biases as observers, where they are installed and asked for (`loop.trackers`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3kit.training.observe import HELD, Observer, Seen
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.installing import install


class TensorBoard:
    """Figures as scalars in `tensorboard/` of the run."""

    def __init__(self, run: Path, every: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._open, self._folder, self._every = SummaryWriter, run / "tensorboard", every
        self._writer: Any = None

    def begin(self, step: int, total: int) -> None:
        """Steps after this one are to be forgotten."""
        self.end()
        self._writer = self._open(str(self._folder), purge_step=step + 1)

    def saw(self, seen: Seen) -> None:
        """Add a point to each curve, if one is due."""
        if seen.logged(self._every):
            for name, value in seen.figures.items():
                self._writer.add_scalar(_titled(name), value, seen.step)

    def end(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Wandb:
    """Figures as a run of Weights & Biases, which goes on as the same run after a restart."""

    name = "wandb"

    def __init__(self, run: Path, every: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        self._wandb, self._run, self._every, self._id = wandb, run, every, ""
        self._open: Any = None

    def state(self) -> Mapping[str, Any]:
        """The run's id there."""
        return {"id": self._id}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with that run."""
        self._id = str(state["id"])

    def begin(self, step: int, total: int) -> None:
        """Start the run, or take it up again."""
        if self._open is None:
            self._id = self._id or self._wandb.util.generate_id()
            self._open = self._wandb.init(
                project="cm3kit",
                name=self._run.resolve().name,
                dir=str(self._run),
                id=self._id,
                resume="allow",
            )

    def saw(self, seen: Seen) -> None:
        """Send the figures, if it is time."""
        if seen.logged(self._every):
            self._open.log({_titled(name): value for name, value in seen.figures.items()}, step=seen.step)

    def end(self) -> None:
        """Say that no more will come."""
        if self._open is not None:
            self._open.finish()
            self._open = None


def trackers(names: Sequence[str], run: Path, every: int) -> list[Observer]:
    """The trackers of these names; ConfigError (`missing_extra`) where one is not installed."""
    kinds: Mapping[str, Callable[[Path, int], Observer]] = {"tensorboard": TensorBoard, "wandb": Wandb}
    return [kinds[name](run, every) for name in names]


def _titled(name: str) -> str:
    """A figure's name there: `held/bits_per_token`, `train/loss`."""
    return f"held/{name.removeprefix(HELD)}" if name.startswith(HELD) else f"train/{name}"


def _missing(name: str) -> ConfigError:
    return ConfigError(f"loop.trackers: {name} is not installed: {install(name)}.", code="missing_extra")
