"""The protocol of objectives: settings, examples, uses of the trained models, and validation.

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
        decoder: cm3 (from left to right) or diffusion.
        layout: where fills are written (`fill.layouts`).
        attention: causal or bidirectional attention among known ids.
        window: longest sequence, without the copy of each page that some objectives add; None if unknown.
        shift: whether a diffusion decoder predicts each position at the one before it.
        isolated_masks: whether a masked position is attended to by itself only, as in training.
        block_size: positions per block, for a model trained on blocks.
        cache: the cache that is exact for the training's attention.
        hints: whether training had size hints.
        preset: the causal masking of training, which determines the end of a fill.
        objective: name and settings of the objective for validation.
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
    """Properties of the tokenizers that objectives use; `grid` is (rows, columns) of a picture's codes."""

    vocab: Vocab
    text: TextTokenizer
    grid: tuple[int, int] | None

    @property
    def continues(self) -> tuple[bool, ...]:
        """For each text id, whether it starts inside a UTF-8 character."""
        return tuple(self.text.continues)


class Objective(Protocol):
    """Converts clean documents to examples, and defines how trained models are used.

    Attributes:
        Settings: a subclass of `ObjectiveSettings`.
    """

    Settings: ClassVar[type[ObjectiveSettings]]

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """The objective from its settings; ConfigError if they are contradictory or contain unknown names."""

    @property
    def copies(self) -> int:
        """How many copies of each page a row holds."""

    @property
    def masks(self) -> bool:
        """Whether examples contain the mask id, for which the model needs an embedding."""

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """Examples of documents (ids, without `<eod>`), each in at most `budget` ids; at least one for each."""

    def uses(self, window: int) -> tuple[Use, ...]:
        """Uses of models trained with rows of `window` ids; the first is the default."""

    def validation(self) -> Mapping[str, Objective]:
        """Objectives for held-out pages, by the prefix of their metrics; without prefix, bits of the whole page."""


registry: Registry[type[Objective]] = objective


def read_settings(given: Any) -> Any:
    """Settings of the objective named in a mapping (default: cm3), for a field of a recipe.

    A setting that only other objectives have is dropped, with a warning unless it is their default: older recipes had
    one list of settings for all objectives.
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
                    f"objective.{path} is not a setting of {name!r}, and is ignored{hint}",
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
