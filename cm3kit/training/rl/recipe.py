"""Settings of reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from cm3kit.config import Settings
from cm3kit.decode_options import GenerateOptions
from cm3kit.models.lora import LoraSettings
from cm3kit.training.rl import estimators as estimation
from cm3kit.training.rl import rewards as judging
from cm3kit.training.rl.losses import LossSettings
from cm3kit.training.rl.prompts import RLTaskName
from cm3kit.training.task import LoopSettings


class RLRecipe(Settings):
    """Everything that reinforcement learning needs.

    A round draws `loop.batch_size` / `group` prompts and writes `group` answers to each; `updates` updates learn from
    it, each of `loop.steps` being one. Scores and rollouts are without dropout.

    Attributes:
        model: by name or folder; what is trained is its first decoder, or that which `sampling` names.
        prompts: a file, or a folder of pages with gaps (`prompts.read_items`); `held` is another one to be tried on,
            and unless given a share `held_share` of the prompts.
        task: what is made of a prompt; `infill` for pages.
        hold_out: CSS selectors of what is taken out of pages, to be written again.
        sampling: options of decoding of the rollouts, by the names of `GenerateOptions`.
        evaluate: by name, what changes in the trials on held-out prompts, which besides have temperature 0 unless they
            say otherwise.
        group: answers to a prompt.
        updates: updates on a round (the papers' mu).
        estimator: of the likelihood, and `loss` of what is made of it.
        rewards: their weighted sum is the reward.
        tries: how often prompts whose answers are all worth the same are replaced by others in a round.
        min_distinct: least share of distinct answers in a group, on average; three rounds below it end training.
        rows: rows of one forward pass, which the memory must hold; it changes no result.
        lora: train adapters instead of all weights.
        previews: prompts that are shown.
    """

    model: str = "pictures"
    prompts: Path = Path("prompts.txt")
    held: Path | None = None
    held_share: float = Field(0.1, ge=0, lt=1)
    task: RLTaskName = "image"
    hold_out: tuple[str, ...] = ()
    sampling: dict[str, Any] = Field(default_factory=lambda: {"temperature": 1.0})
    evaluate: dict[str, dict[str, Any]] = Field(default_factory=dict)
    group: int = Field(8, ge=2)
    updates: int = Field(2, ge=1)
    estimator: Annotated[
        SerializeAsAny[estimation.EstimatorSettings], BeforeValidator(estimation.read_settings)
    ] = Field(default_factory=lambda: estimation.read_settings("coupled"))
    loss: LossSettings = LossSettings()
    rewards: Annotated[
        tuple[SerializeAsAny[judging.RewardSettings], ...], BeforeValidator(judging.read_settings)
    ] = Field(default=(), min_length=1, validate_default=True)
    tries: int = Field(2, ge=0)
    min_distinct: float = Field(0.0, ge=0, le=1)
    rows: int = Field(8, ge=1)
    lora: LoraSettings = LoraSettings()
    previews: int = Field(4, ge=0)
    loop: LoopSettings = LoopSettings()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.loop.batch_size % self.group:
            raise ValueError(
                f"loop.batch_size = {self.loop.batch_size} is no multiple of group = {self.group}; a batch is groups"
            )
        if self.loop.workers:
            raise ValueError(
                "loop.workers draws batches ahead, and rollouts need the policy of their step; set 0"
            )
        if self.loss.sync_every and self.loss.sync_every % self.updates:
            raise ValueError("loss.sync_every is a multiple of updates: a reference stays for a round")
        if self.loss.sync_every and self.lora.rank:
            raise ValueError(
                "loss.sync_every: with adapters the reference is the model without them; leave it out"
            )
        if self.loop.shard and self.lora.rank:
            raise ValueError(
                "loop.shard: adapters are small, and rollouts need them whole; leave shard or lora out"
            )
        for name, chosen in (("sampling", self.sampling), *self.evaluate.items()):
            options_of(chosen, name)
        return self

    @property
    def groups(self) -> int:
        """Groups of a round."""
        return self.loop.batch_size // self.group

    @property
    def trials(self) -> dict[str, GenerateOptions]:
        """By name, the options of the trials on held-out prompts."""
        chosen = self.evaluate or {"": {}}
        return {
            name: options_of({**self.sampling, "temperature": 0.0, **each}, name)
            for name, each in chosen.items()
        }


def options_of(chosen: Mapping[str, Any], name: str = "sampling") -> GenerateOptions:
    """Options of decoding by name.

    Raises:
        ValueError: there is no such option.
    """
    names = [each.name for each in fields(GenerateOptions)]
    for key in chosen:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            raise ValueError(f"{name}.{key} is unknown" + (f"; did you mean {near[0]}?" if near else ""))
    own = {"overrides": tuple(chosen["overrides"])} if chosen.get("overrides") else {}
    # Rollouts are scored again by weights in fp32, and so they are drawn from them unless asked otherwise.
    given = {"precision": "fp32", **chosen}
    return GenerateOptions(**{**{key: each for key, each in given.items() if key != "overrides"}, **own})
