"""Several objectives for one model: each page is drawn for one of them.

`hybrid` is causal masking with masked diffusion (GPT-BERT, arXiv:2410.24159, sec. 3); here are any objectives of the
registry, each with settings of its own, as of blocks beside the beginnings of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Generator

from cm3kit.config import Settings
from cm3kit.objectives.contract import Objective, ObjectiveSettings, TokenizerParts, Use, read_settings
from cm3kit.registry import objective
from cm3kit.types import Example
from cm3kit_tokenizers.errors import ConfigError


class PartSettings(Settings):
    """An objective, and how many pages it has in proportion to the others."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    objective: Annotated[SerializeAsAny[ObjectiveSettings], BeforeValidator(read_settings)]


class MixtureSettings(ObjectiveSettings):
    """The objectives that are mixed."""

    name: str = "mixture"
    parts: tuple[PartSettings, ...] = ()


@objective("mixture")
@dataclass(frozen=True)
class Mixture:
    """Each page goes to one of `parts`, drawn by `weights`; examples stay in the order of the pages.

    Args:
        parts: objectives; the model is used, and validated, as the first that names a use says.
        weights: one for each, above 0.

    Raises:
        ConfigError: there are no parts, or two predict an id of one decoder at different positions.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = MixtureSettings

    parts: tuple[Objective, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.weights):
            raise ConfigError(
                "mixture has no parts; list them: parts: [{weight: 1, objective: {name: cm3}}, …].",
                code="bad_config",
            )
        shifts = {use.shift for part in self.parts for use in part.uses(1024) if use.decoder == "diffusion"}
        causal = any(use.decoder == "cm3" for part in self.parts for use in part.uses(1024))
        if len(shifts) > 1 or (causal and shifts == {False}):
            raise ConfigError(
                "the parts of mixture predict an id at its own position and at the one before it; set "
                "diffusion.shift=true in those of diffusion.",
                code="bad_config",
            )

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """See `Objective`."""
        made = tuple(objective[each.objective.name].build(each.objective, parts) for each in settings.parts)
        return cls(made, tuple(each.weight for each in settings.parts))

    @property
    def copies(self) -> int:
        """The largest of the parts."""
        return max(part.copies for part in self.parts)

    @property
    def masks(self) -> bool:
        """Whether one of them uses masks."""
        return any(part.masks for part in self.parts)

    def uses(self, window: int) -> tuple[Use, ...]:
        """The first use of each decoder in each layout, in the order of the parts."""
        found: dict[tuple[str, str], Use] = {}
        for part in self.parts:
            for use in part.uses(window):
                found.setdefault((use.decoder, use.layout), use)
        return tuple(found.values())

    def validation(self) -> Mapping[str, Objective]:
        """Validation of all parts; of those with one prefix, the first."""
        found: dict[str, Objective] = {}
        for part in self.parts:
            for prefix, each in part.validation().items():
                found.setdefault(prefix, each)
        return found

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """The examples of each document, in their order."""
        ends = [*accumulate(self.weights)]
        draws = torch.rand(len(documents), generator=rng, dtype=torch.float64).tolist()
        out: list[Example] = []
        for ids, draw in zip(documents, draws, strict=True):
            place = next((n for n, end in enumerate(ends) if draw * ends[-1] < end), len(ends) - 1)
            out += self.parts[place].make_examples([ids], rng, budget)
        return out
