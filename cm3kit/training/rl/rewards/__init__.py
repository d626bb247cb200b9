"""Rewards of outputs: one file each, in one registry; plug-ins add more.

A reward is a class with `Settings` and a call that takes a batch of samples and gives a number for each, or None where
it cannot say, which leaves the sample out. It is pure: it runs nothing of a page, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

from PIL import Image

from cm3kit.config import Settings
from cm3kit.registry import Registry

# The last are in other packages, whose parts they use.
BUILT_IN = (
    *(f"{__name__}.{name}" for name in ("command", "length", "match", "page", "picture", "variety")),
    "cm3kit.evaluation.judged",
    "cm3kit.batch.agreement",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """An output, as rewards see it.

    Attributes:
        prompt: the words, or the name of the file, that it answers.
        group: number of the group; samples of one group answer the same prompt.
        texts: what was written, text by text (of a page: gap by gap; a picture is the empty text).
        answers: what stood there before, where that is known (None where it is not).
        ended: whether every text ended by itself.
        tokens: ids that were written.
        hints: about how many ids each text was to have, where the page says so.
        image: the picture, and `codes` of it.
        html: the page that it is part of.
        meta: other columns of the prompt's row.
    """

    prompt: str
    group: int
    texts: tuple[str, ...] = ()
    answers: tuple[str | None, ...] = ()
    ended: bool = True
    tokens: int = 0
    hints: tuple[int | None, ...] = ()
    image: Image.Image | None = None
    codes: tuple[int, ...] = ()
    html: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        """Samples with the same key are the same output."""
        return self.texts, self.codes, self.html


@dataclass(frozen=True, slots=True)
class RewardContext:
    """Context of rewards: the folder of the model that training began with, and the device."""

    model: Path
    device: str


class RewardSettings(Settings):
    """Base of the settings of all rewards; `name` is that of the registry, and `weight` its part in the sum."""

    name: str = ""
    weight: float = 1.0


class Reward(Protocol):
    """Judges samples.

    Attributes:
        Settings: a subclass of `RewardSettings`.
    """

    Settings: ClassVar[type[RewardSettings]]

    def __init__(self, settings: Any, context: RewardContext) -> None: ...

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> Sequence[float | None]:
        """A number for each sample; larger is better, and 0 to 1 is usual.

        Args:
            samples: whole groups.
            prompts: those of all groups of the round, in the same order in every process.
        """


reward: Registry[type[Reward]] = Registry("reward")


def known() -> Registry[type[Reward]]:
    """All rewards: those that ship, and those of plug-ins."""
    for name in BUILT_IN:
        import_module(name)
    return reward


def read_settings(given: Any) -> Any:
    """The settings of rewards, from names, or mappings with `name`, for a field of a recipe."""
    if not isinstance(given, list | tuple):
        return given
    found = []
    for each in given:
        chosen = {"name": each} if isinstance(each, str) else each
        if isinstance(chosen, Mapping):
            chosen = known()[str(chosen.get("name", ""))].Settings.model_validate(chosen)
        found.append(chosen)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Judged:
    """The sum of all rewards of each sample (None where one said None), and each by its name."""

    totals: list[float | None]
    parts: dict[str, list[float | None]]


class Rewards:
    """Several rewards as their weighted sum."""

    def __init__(self, settings: Sequence[RewardSettings], context: RewardContext) -> None:
        names = [each.name for each in settings]
        # Several of one kind are numbered.
        self._names = [
            name if names.count(name) == 1 else f"{name} {names[: at + 1].count(name)}"
            for at, name in enumerate(names)
        ]
        self._made = [(each, known()[each.name](each, context)) for each in settings]

    @property
    def weights(self) -> dict[str, float]:
        """By the names of parts."""
        return {name: settings.weight for name, (settings, _) in zip(self._names, self._made, strict=True)}

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> Judged:
        """Score samples."""
        totals: list[float | None] = [0.0] * len(samples)
        parts: dict[str, list[float | None]] = {}
        for name, (settings, judge) in zip(self._names, self._made, strict=True):
            values = list(judge(samples, prompts)) if samples else []
            if len(values) != len(samples):
                raise ValueError(
                    f"the reward {settings.name!r} gave {len(values)} values for {len(samples)} samples"
                )
            parts[name] = values
            for number, value in enumerate(values):
                before = totals[number]
                told = None if before is None or value is None else before + settings.weight * float(value)
                totals[number] = told
        return Judged(totals, parts)
