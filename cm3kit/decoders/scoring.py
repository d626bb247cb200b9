"""Scores of given answers: their log-probability under either decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cm3kit.types import Canvas, Fill, MaskSpan
from cm3kit_tokenizers.errors import ConfigError

Method = Literal["exact", "left-to-right", "bound"]
"""What a log-probability is: exact; exact for writing from left to right, of a model that writes in any order too; or
a lower bound."""


@dataclass(frozen=True, slots=True)
class Scored:
    """How likely the given answers of one canvas are together.

    Attributes:
        logprob: in nats, with the ends of answers whose length is not fixed.
        fills: the answers; `logprobs` id by id, none where the sum is a bound.
        method: what the log-probability is.
        stderr: standard error of a bound that was estimated from random masks.
        greedy: whether each id is the most likely one at its position; None where ids are not scored one by one.
    """

    logprob: float
    fills: tuple[Fill, ...]
    method: Method = "exact"
    stderr: float = 0.0
    greedy: bool | None = None


def answered(canvas: Canvas) -> list[MaskSpan]:
    """The spans of a canvas whose answer is given.

    Raises:
        ConfigError: there is none, or one does not have the length that its span asks for (`bad_value`).
    """
    spans = [span for span in canvas.spans if span.answer is not None]
    if not spans:
        raise ConfigError("no answer is given for any gap; give one to score.", code="bad_value")
    for span in spans:
        count = len(span.answer or ())
        if count > span.max_tokens or (span.exact and count != span.max_tokens):
            most = "exactly" if span.exact else "at most"
            raise ConfigError(
                f"an answer to gap {span.gap} takes {count} ids, and the gap holds {most} {span.max_tokens};"
                " give another answer or length.",
                code="bad_value",
            )
    return spans
