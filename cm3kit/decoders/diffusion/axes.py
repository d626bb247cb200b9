"""The registries of the diffusion decoder's axes, how a setting names one with its options, and checks of these."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

from cm3kit.decode_options import Choice
from cm3kit.decoders.diffusion.scores import Accept, Order, Schedule
from cm3kit.registry import Registry
from cm3kit_tokenizers.errors import ConfigError

schedule: Registry[Callable[..., list[int]]] = Registry("unmasking schedule")
order: Registry[Callable[..., Any]] = Registry("order")
accept: Registry[Callable[..., Any]] = Registry("accept rule")
modifier: Registry[Callable[..., Any]] = Registry("modifier")

Function = TypeVar("Function", bound=Callable[..., Any])


def bind(registry: Registry[Function], choice: Choice) -> Callable[..., Any]:
    """The function that a setting names, with its options bound.

    Raises:
        ConfigError: the name (`unknown_name`) or an option (`bad_config`) is unknown, or an option has no value.
    """
    options: Mapping[str, Any] = (
        {} if isinstance(choice, str) else {k: v for k, v in choice.items() if k != "name"}
    )
    name = choice if isinstance(choice, str) else choice.get("name")
    if not isinstance(name, str):
        raise ConfigError(
            f"{registry.kind} {choice!r} has no name; write one with its options.", code="bad_config"
        )
    function = registry[name]
    known = [
        each.name
        for each in inspect.signature(function).parameters.values()
        if each.kind is each.KEYWORD_ONLY
    ]
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(known) or 'none'}."
            raise ConfigError(f"{registry.kind} {name!r} has no option {option!r}; {hint}", code="bad_config")
    return partial(function, **options) if options else function


def number(option: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """The value of an option, if it is a number in `least..most`.

    Raises:
        ConfigError: it is none, not finite, or out of range (`bad_config`).
    """
    # True is an int in Python, but was not meant as a number.
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


__all__ = [
    "Accept", "Choice", "Order", "Schedule", "accept", "bind", "modifier", "number", "one_of", "order", "schedule",
    "whole",
]  # fmt: skip
