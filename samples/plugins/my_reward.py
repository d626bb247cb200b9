"""A reward: the share of long words. Try: train rl --reward long-words --set task=text."""

from collections.abc import Sequence

from cm3kit.training.rl.rewards import RewardContext, RewardSettings, Sample, reward


class LongWordsSettings(RewardSettings):
    """`letters` that make a word a long one."""

    letters: int = 6


@reward("long-words")
class LongWords:
    """None, which leaves an answer out, where there are no words."""

    Settings = LongWordsSettings

    def __init__(self, settings: LongWordsSettings, context: RewardContext) -> None:
        self.letters = settings.letters

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[float | None]:
        """A share for each sample."""
        found = [" ".join(each.texts).split() for each in samples]
        return [
            sum(len(word) >= self.letters for word in words) / len(words) if words else None
            for words in found
        ]
