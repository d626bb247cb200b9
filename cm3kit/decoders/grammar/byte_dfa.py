"""Regular expressions as automata over bytes, by outlines-core (Willard and Louf, arXiv:2307.09702)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from cm3kit.decoders.grammar.rules import ByteDfa
from cm3kit.extras import need
from cm3kit_tokenizers.errors import ConfigError

MOST_STATES = 20_000
BYTES = 256
STOP = 1
"""A byte that no page can hold. It is asked for behind the pattern, as outlines-core 0.2 drops all bytes that lead from
a whole match to where there is none, such as the first one of a character of several bytes."""


def outlines() -> Any:
    """The package outlines_core; DataError (`missing_extra`) where it is not installed."""
    need("outlines_core.json_schema", "constraints", "A constraint by regex or json-schema")
    return need("outlines_core", "constraints", "A constraint by regex or json-schema")


@lru_cache(maxsize=64)
def compile_regex(pattern: str) -> ByteDfa:
    """The automaton of all that a pattern matches as a whole; `^` and `$` around it are understood and change nothing.

    Raises:
        ConfigError: it is no pattern of Rust's crate `regex`, looks around or refers back, matches nothing, or has too
            many states (`bad_value`).
    """
    core, tried = outlines(), f"(?:{unanchored(pattern)})\\x{STOP:02x}"
    # Every byte is a token, so that the index over tokens is one over bytes.
    tokens = core.Vocabulary(BYTES, {bytes([byte]): [byte] for byte in range(BYTES)})
    try:
        index = core.Index(tried, tokens)
    except (ValueError, TypeError, RuntimeError) as error:
        line = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"regex {pattern[:80]!r} cannot be used: {line}; leave out what looks around or refers back.",
            code="bad_value",
        ) from error
    moves = index.get_transitions()
    states = list(dict.fromkeys([index.get_initial_state(), *moves, *index.get_final_states()]))
    if len(states) > MOST_STATES:
        raise ConfigError(
            f"regex {pattern[:80]!r} has {len(states):,} states, and at most {MOST_STATES:,} can be used; repeat"
            " less, or give ranges such as [a-z] for \\w.",
            code="bad_value",
        )
    numbers = {state: number for number, state in enumerate(states)}
    next_SB = np.full((len(states), BYTES + 1), -1, dtype=np.int32)
    for state, row in moves.items():
        bytes_K = np.fromiter(row.keys(), np.int64, len(row))
        next_SB[numbers[state], bytes_K] = [numbers[each] for each in row.values()]
    whole = [numbers[each] for each in index.get_final_states()]
    final_S = np.isin(next_SB[:, STOP], whole)
    next_SB[:, STOP] = -1
    return ByteDfa(next_SB[:, :BYTES], final_S)


def unanchored(pattern: str) -> str:
    """The pattern without `^` and `$` at its ends, which the whole answer has anyway."""
    if pattern.startswith("^"):
        pattern = pattern[1:]
    if pattern.endswith("$"):
        body = pattern[:-1]
        # An odd number of backslashes makes the sign a character.
        if (len(body) - len(body.rstrip("\\"))) % 2 == 0:
            pattern = body
    return pattern


def prefixed(dfa: ByteDfa, lead: bytes) -> ByteDfa:
    """The automaton of the same answers behind some bytes."""
    count = len(lead)
    if not count:
        return dfa
    shifted_SB = np.where(dfa.next_SB >= 0, dfa.next_SB + count, -1)
    before_LB = np.full((count, BYTES), -1, dtype=shifted_SB.dtype)
    before_LB[np.arange(count), list(lead)] = np.arange(1, count + 1)
    return ByteDfa(
        np.concatenate([before_LB, shifted_SB]), np.concatenate([np.zeros(count, np.bool_), dfa.final_S])
    )
