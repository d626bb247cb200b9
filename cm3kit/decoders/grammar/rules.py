"""What answers may say, as both decoders and plug-ins see it: a registry of kinds, and the rules that they stand for.

A kind turns what a user writes (`choices:red|green`) into a rule: texts, a regular expression, or an automaton over
bytes. Rules are about what a reader reads; escaping for the place on the page is not their business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cm3kit.registry import Registry
from cm3kit_tokenizers.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BYTES = 1 << 30
"""The largest file that a constraint may name."""


@dataclass(frozen=True)
class Texts:
    """One of these texts; `notes` are lines on what was left out of them."""

    texts: Iterable[str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Regex:
    """All of a regular expression, in the syntax of Rust's crate `regex`; it needs outlines-core."""

    pattern: str


@dataclass(frozen=True)
class ByteDfa:
    """A deterministic automaton over bytes of UTF-8.

    Attributes:
        next_SB: state (S, 256) after a byte, -1 where none may follow; state 0 is the start.
        final_S: bool, where an answer may end.
    """

    next_SB: NDArray[Any]
    final_S: NDArray[Any]


Rule: TypeAlias = Texts | Regex | ByteDfa


class ConstraintKind:
    """A kind of constraint; subclasses say what its values mean. They are made without arguments."""

    def resolve(self, value: str, folder: Path | None) -> str:
        """The value with what it names made explicit: files by their absolute path, or by what they hold.

        Args:
            folder: where relative paths start; None where no file may be named.

        Raises:
            ConfigError: the value is none (`bad_value`), or a file is missing or may not be named (`no_file`).
        """
        return value

    def version(self, value: str) -> object:
        """A key that changes when the meaning of the same value does, such as the time of a file."""
        return None

    def rule(self, value: str) -> Rule | None:
        """What a resolved value allows; None for all that the gap's place does. ConfigError (`bad_value`)."""
        raise NotImplementedError


constraint: Registry[type[ConstraintKind]] = Registry("constraint")


def file_of(value: str, folder: Path | None, what: str) -> Path:
    """A file that a constraint names; ConfigError (`no_file`) where it is missing or none may be named."""
    if folder is None:
        raise ConfigError(
            f"{what} {value[:60]!r} is a file, and none may be named here; give what it holds.",
            code="no_file",
        )
    path = (folder / value).absolute()
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        there = False
    if not there:
        raise ConfigError(f"{what} {value[:200]!r} is no file in {folder}; check the path.", code="no_file")
    if path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"{what} {path} is over {MOST_BYTES >> 30} GB; split it.", code="bad_value")
    return path
