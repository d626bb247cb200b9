"""An objective: every page is read backwards. Try: cm3kit --plugin my_objective.py train cm3 --objective backwards."""

from dataclasses import dataclass
from typing import ClassVar

from cm3kit.objectives.contract import ObjectiveSettings, Use
from cm3kit.objectives.next_token import NextToken
from cm3kit.registry import objective


class BackwardsSettings(ObjectiveSettings):
    """There are none."""

    name: str = "backwards"


@objective("backwards")
@dataclass(frozen=True)
class Backwards(NextToken):
    """Next-token prediction over reversed pages."""

    Settings: ClassVar[type[ObjectiveSettings]] = BackwardsSettings

    def make_examples(self, documents, rng, budget):  # type: ignore[no-untyped-def]
        """Examples of the reversed documents."""
        return super().make_examples([list(ids)[::-1] for ids in documents], rng, budget)

    def uses(self, window: int) -> tuple[Use, ...]:
        """As next-token models are used."""
        return (Use(layout="continue", window=window, objective={"name": "backwards"}),)
