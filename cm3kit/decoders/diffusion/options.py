"""Check an option that a user gave to a function of an axis."""

from __future__ import annotations

import math

from cm3kit_tokenizers.errors import ConfigError


def number(option: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """The value of an option, if it is a number in `least..most`.

    Raises:
        ConfigError: it is none, not finite, or out of range (`bad_config`).
    """
    # True is an int to Python, but no number to the person who wrote it.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"option {option!r} is {value!r}; give a number.", code="bad_config")
    if not least <= value <= most:
        raise ConfigError(
            f"option {option!r} is {value!r}; give a number in {least:g}..{most:g}.", code="bad_config"
        )
    return float(value)


def whole(option: str, value: object, least: int) -> int:
    """The value of an option, if it is a whole number from `least` on.

    Raises:
        ConfigError: it is not (`bad_config`).
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(
            f"option {option!r} is {value!r}; give a whole number from {least} on.", code="bad_config"
        )
    return value


def one_of(option: str, value: object, known: tuple[str, ...]) -> str:
    """The value of an option, if it is one of these words.

    Raises:
        ConfigError: it is not (`bad_config`).
    """
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"option {option!r} is {value!r}; it takes: {', '.join(known)}.", code="bad_config")
    return value
