"""Differences between a run and the checkpoint that it resumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cm3kit.training.task import LoopSettings
from cm3kit_tokenizers.errors import ConfigError

# These do not affect the weights.
HARMLESS = {"save_every", "keep", "best", "preview_every", "log_every", "rollbacks", "on_spike", "spike"}


def changes(state: Mapping[str, Any], settings: LoopSettings, processes: int) -> Iterator[str]:
    """A line for each difference to a run that was not stopped."""
    before = state.get("processes", processes)
    if before != processes:
        yield (
            f"the checkpoint was written by {before} process(es) and this run has {processes}:"
            " batches are the same, and sums differ in their last digits"
        )
    old = state.get("loop", {})
    for name, now in settings.model_dump(mode="json").items():
        if name in old and old[name] != now and name not in HARMLESS:
            yield f"loop.{name} is {now}, and was {old[name]} when the checkpoint was written"


def refuse_other_data(folder: Path, state: Mapping[str, Any], data: str) -> None:
    """ConfigError if the data are not those of the checkpoint; older checkpoints do not tell."""
    if data and state.get("data", data) not in ("", data):
        raise ConfigError(
            f"{folder} was trained on other data ({state['data']}, now {data}), so its place in them means nothing;"
            " choose another --output, and start from its weights.",
            code="bad_config",
        )
