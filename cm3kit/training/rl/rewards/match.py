"""How well texts match the original ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from cm3kit.training.rl.rewards import RewardContext, RewardSettings, Sample, reward


class MatchSettings(RewardSettings):
    """`case` minds capitals."""

    case: bool = False


class _Match:
    """The mean over the texts whose answer is known; None where none is."""

    Settings: ClassVar[type[RewardSettings]] = MatchSettings

    def __init__(self, settings: Any, context: RewardContext) -> None:
        self._case = settings.case

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[float | None]:
        """See `Reward`."""
        return [self._of(sample) for sample in samples]

    def _of(self, sample: Sample) -> float | None:
        pairs = [
            (self._plain(text), self._plain(answer))
            for text, answer in zip(sample.texts, sample.answers, strict=False)
            if answer is not None
        ]
        return sum(self._alike(*pair) for pair in pairs) / len(pairs) if pairs else None

    def _plain(self, text: str) -> str:
        plain = " ".join(text.split())
        return plain if self._case else plain.casefold()

    def _alike(self, text: str, answer: str) -> float:
        raise NotImplementedError


@reward("exact")
class Exact(_Match):
    """1 for the same words, but for spaces."""

    def _alike(self, text: str, answer: str) -> float:
        return float(text == answer)


@reward("edit")
class Edit(_Match):
    """1 minus the edit distance (Levenshtein) over the length of the longer one."""

    def _alike(self, text: str, answer: str) -> float:
        longest = max(len(text), len(answer))
        return 1 - edit_distance(text, answer) / longest if longest else 1.0


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements that turn one text into the other."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        before, row[0] = row[0], number
        for column, against in enumerate(other, 1):
            best = min(row[column] + 1, row[column - 1] + 1, before + (letter != against))
            before, row[column] = row[column], best
    return row[-1]
