"""One of a few texts: `choices:red|green|blue`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cm3kit.decoders.grammar.rules import ConstraintKind, Texts, constraint
from cm3kit_tokenizers.errors import ConfigError

_PARTS = re.compile(r"((?:[^\\|]|\\.|\\\Z)*)(?:\||\Z)", re.S)


def split(value: str) -> list[str]:
    r"""The texts of a value; a `|` or a backslash of a text itself has a backslash before it."""
    parts, at = [], 0
    while True:
        match = _PARTS.match(value, at)
        assert match is not None
        parts.append(re.sub(r"\\(.)", r"\1", match[1], flags=re.S))
        if not match[0].endswith("|") or match.end(1) == match.end():
            return parts
        at = match.end()


def join(texts: Iterable[str]) -> str:
    """The value that stands for some texts."""
    return "|".join(re.sub(r"([\\|])", r"\\\1", each) for each in texts)


@constraint("choices")
class Choices(ConstraintKind):
    """Texts between `|`."""

    def rule(self, value: str) -> Texts:
        """These texts; ConfigError (`bad_value`) where one is empty."""
        texts = split(value)
        if not all(texts):
            raise ConfigError(
                f"choices {value[:80]!r} holds an empty text; write them as red|green|blue.", code="bad_value"
            )
        return Texts(list(dict.fromkeys(texts)))
