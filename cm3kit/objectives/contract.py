"""What an objective is: its settings, its examples, how its models are used, and what validation scores.

An objective is one file that registers itself: `@objective("name")` on a class with the members of `Objective`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Protocol, Self

from pydantic import Field
from torch import Generator

from cm3kit.config import Settings, leaves
from cm3kit.registry import Registry, objective
from cm3kit.types import Attention, Example
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab


class Use(Settings):
    """One way to use a trained model.

    Attributes:
        decoder: the decoder that writes: cm3 (from left to right) or diffusion.
        layout: where its answers go (`fill.layouts`).
        attention: whether known ids look left only, or at one another.
        window: longest sequence, without the copy that some objectives show of each page; None where nobody knows.
        shift: whether the model scores each position at the one before it, in a diffusion decoder.
        isolated_masks: whether masked positions are seen by themselves alone, as in training.
        block_size: positions of a block, for a model that was trained block by block.
        cache: the cache that its training makes exact.
        hints: whether it was told about how long answers are.
        preset: the causal masking of its training, which says what ends an answer.
        objective: name and settings of the objective that scores it in validation.
    """

    decoder: str = "cm3"
    layout: str = "behind"
    attention: Attention = "causal"
    window: int | None = Field(None, ge=1)
    shift: bool = False
    isolated_masks: bool = False
    block_size: int | None = Field(None, ge=1)
    cache: str = "none"
    hints: bool = False
    preset: str = "recommended"
    objective: dict[str, Any] = Field(default_factory=dict)


class ObjectiveSettings(Settings):
    """Base of the settings of all objectives; `name` is that of the registry."""

    name: str = ""


@dataclass(frozen=True)
class TokenizerParts:
    """What objectives know of the tokenizers; `grid` is (rows, columns) of a picture's codes."""

    vocab: Vocab
    text: TextTokenizer
    grid: tuple[int, int] | None

    @property
    def continues(self) -> tuple[bool, ...]:
        """For each text id, whether it starts inside a UTF-8 character."""
        return tuple(self.text.continues)


class Objective(Protocol):
    """How clean documents become examples, and what the models are good for that learn from them.

    Attributes:
        Settings: a subclass of `ObjectiveSettings`.
    """

    Settings: ClassVar[type[ObjectiveSettings]]

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """The objective by its settings; ConfigError where they contradict one another or name what is not there."""

    @property
    def copies(self) -> int:
        """How often a row holds each page."""

    @property
    def masks(self) -> bool:
        """Whether examples hold the mask id, whose embedding then has to be there."""

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """Examples of documents (ids, without `<eod>`), each in at most `budget` ids; at least one for each."""

    def uses(self, window: int) -> tuple[Use, ...]:
        """How models are used that were trained in rows of `window` ids; the first use is the default."""

    def validation(self) -> Mapping[str, Objective]:
        """What to score on held-out pages, by the prefix of its figures; without one, bits of the whole page."""


registry: Registry[type[Objective]] = objective


def read_settings(given: Any) -> Any:
    """The settings of the objective that a mapping names (by default cm3), for a field of a recipe.

    A setting that only other objectives have is left out, with a warning if it is not their default: recipes of before
    had one list of settings for all objectives.
    """
    if not isinstance(given, Mapping):
        return given
    name = given.get("name", "cm3")
    kind = registry[name].Settings if isinstance(name, str) else ObjectiveSettings
    kept = _own(kind, given, str(name))
    return kind.model_validate({**kept, "name": name})


def _own(kind: type[ObjectiveSettings], given: Mapping[str, Any], name: str) -> dict[str, Any]:
    mine = leaves(kind().model_dump())
    theirs: dict[str, Any] = {}
    for each in registry:
        theirs |= leaves(registry[each].Settings().model_dump())
    kept: dict[str, Any] = {}
    for path, value in leaves(given).items():
        inside = any(own == path or own.startswith(f"{path}.") or path.startswith(f"{own}.") for own in mine)
        if not inside and path in theirs and path != "name":
            if value != theirs[path] and [*_listed(value)] != [*_listed(theirs[path])]:
                near = get_close_matches(path, mine, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                warnings.warn(
                    f"objective.{path} is no setting of {name!r}, and is left out{hint}",
                    UserWarning,
                    stacklevel=2,
                )
            continue
        group = kept
        *parents, last = path.split(".")
        for parent in parents:
            group = group.setdefault(parent, {})
        group[last] = value
    return kept


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)
