"""Sampling with Ray Data: for `Dataset.map_batches`, on a cluster's GPUs. See samples/sample_ray.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import cm3kit
from cm3kit.batch.job import seed_of
from cm3kit.batch.rows import SampleTask
from cm3kit.batch.run import BATCH_SIZE
from cm3kit.batch.work import SUFFIXES
from cm3kit.fill.batching import Order
from cm3kit.fill.kit import Filled
from cm3kit.fill.options import GenerateOptions
from cm3kit.provenance.reproducing import encode
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError


class Sample:
    """Adds to rows with `prompt` (and `id`, `seed`) the columns `content`, `suffix`, `logprob`, `error` and `warnings`.

    Outputs equal those of `sample run` with the same run seed, except for embedded metadata. With `ray.data`'s
    `CheckpointConfig(id_column="id", …)` a job can be resumed.

    Args:
        model: name or folder, resolved on each machine.
        task: any task but `infill`.
        seed: of the run; seeds of rows are derived from it and their ids.
        options: as for `Kit.generate`.
    """

    def __init__(
        self, model: str | None = None, task: SampleTask = "image", seed: int = 0,
        options: Mapping[str, Any] | None = None, device: str = "auto",
    ) -> None:  # fmt: skip
        if task == "infill":
            raise ConfigError("Ray Data rows are prompts; fill pages with sample run.", code="bad_value")
        self._kit, self._task, self._seed = cm3kit.load(model, device), task, seed
        self._options = GenerateOptions(**{"batch_size": BATCH_SIZE, **(options or {})})

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The same rows, in the same order."""
        made = {order.key: result for order, result in self._kit.sample(self._orders(batch))}
        found = [self._told(made[place]) for place in range(len(batch["prompt"]))]
        columns = zip(*found, strict=True)
        names = ("content", "suffix", "logprob", "error", "warnings")
        return {**batch, **{name: np.array(each, object) for name, each in zip(names, columns, strict=True)}}

    def _orders(self, batch: Mapping[str, Any]) -> list[Order]:
        prompts = list(map(str, batch["prompt"]))
        ids = list(map(str, batch["id"])) if "id" in batch else prompts
        seeds = batch["seed"] if "seed" in batch else [seed_of(self._seed, id) for id in ids]
        return [
            Order(
                Path(prompt) if self._task == "caption" else prompt, self._task,
                int(seed), 0, self._options, key=place,
            )
            for place, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]  # fmt: skip

    def _told(self, made: Any) -> tuple[bytes, str, float, str, str]:
        if isinstance(made, Exception):
            text = str(made) if isinstance(made, Cm3kitError) else f"{type(made).__name__}: {made}"
            return b"", "", 0.0, text, ""
        assert not isinstance(made, Filled)
        place = {"seed": made.seed, "index": made.index, "task": self._task, "model": self._kit.parts.name}
        return encode(made, place), SUFFIXES[self._task], made.logprob, "", "\n".join(made.warnings)
