"""Do a picture and its words belong together? By the model that training began with, both ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from cm3kit.batch.choice import Likelihood
from cm3kit.fill.kit import load
from cm3kit.training.rl.rewards import RewardContext, RewardSettings, Sample, reward
from cm3kit_tokenizers.errors import ConfigError


class AgreementSettings(RewardSettings):
    """The words compete with those of at most `others` other prompts of the round."""

    others: int = Field(7, ge=1)


@reward("agreement")
class Agreement:
    """How surely the words are told from others by the picture: the mean of two probabilities.

    Given the picture, the model is asked for its words and for those of other prompts, and given any of these words
    for the picture; each time the share of the right ones is counted, all words being as likely beforehand. Words
    are scored per byte, since long ones would lose by their length. The model is that which training began with, which
    the policy cannot change. None where there is no picture, or nothing to compare with.
    """

    Settings: ClassVar[type[RewardSettings]] = AgreementSettings

    def __init__(self, settings: Any, context: RewardContext) -> None:
        kit = load(context.model, context.device)
        if "cm3" not in kit.parts.defaults.decoders:
            raise ConfigError(
                f"the reward 'agreement' needs the decoder 'cm3', which {kit.parts.name!r} was not trained for;"
                " use judged.",
                code="bad_value",
            )
        self._others, self._judge = settings.others, Likelihood(kit, "")
        self._known: dict[tuple[str, tuple[int, ...]], tuple[float, float]] = {}

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[float | None]:
        """See `Reward`."""
        self._known.clear()
        names = list(dict.fromkeys(prompts))
        return [self._of(sample, names) for sample in samples]

    def _of(self, sample: Sample, names: Sequence[str]) -> float | None:
        words = " ".join(sample.texts).strip() or sample.prompt
        # From the own prompt on, so that every one is compared with others.
        at = names.index(sample.prompt) if sample.prompt in names else 0
        turned = [*names[at:], *names[:at]]
        against = [each for each in turned if each not in (words, sample.prompt)][: self._others]
        if not sample.codes or not against:
            return None
        found = [self._logprobs(each, sample.codes) for each in (words, *against)]
        return sum(_share([each[way] for each in found]) for way in (0, 1)) / 2

    def _logprobs(self, words: str, codes: tuple[int, ...]) -> tuple[float, float]:
        """log p of the picture given the words, and of the words given the picture, per byte."""
        if (words, codes) not in self._known:
            picture = self._judge.picture_given_words(words, codes)
            caption = self._judge.words_given_picture(words, codes) / max(1, len(words.encode()))
            self._known[words, codes] = picture, caption
        return self._known[words, codes]


def _share(logprobs: Sequence[float]) -> float:
    """The share of the first among all."""
    top = max(logprobs)
    odds = [math.exp(each - top) for each in logprobs]
    return odds[0] / sum(odds)
