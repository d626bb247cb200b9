"""What the tag of a gap says of its answer: `<mask size=12>`, `<mask choices="red|green">`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cm3kit_tokenizers.document import MOST_SIZE
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.html.spans import line_of

CONSTRAINTS = ("choices", "constraint", "json-schema", "regex", "trie")
"""Attributes of a gap that say what may stand in it; `constraint` is any kind, as KIND:VALUE."""
_PAIR = r"""\s+[a-z-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>/]*)"""
WRITTEN = re.compile(rf"<mask((?:{_PAIR})*)\s*/?>", re.I)
_ATTRIBUTE = re.compile(r"""([a-z-]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"'<>/]*)""", re.I)


def told(text: str, match: re.Match[str]) -> tuple[int | None, tuple[str, str] | None]:
    """Size and constraint of a tag that is no element."""
    named = {name.lower(): value for name, value in reversed(_ATTRIBUTE.findall(match[1]))}
    bare = {name: value[1:-1] if value[:1] in ("'", '"') else value for name, value in named.items()}
    return size_of(text, match.start(), named.get("size")), constraint_of(text, match.start(), bare)


def constraint_of(text: str, offset: int, named: Mapping[str, str]) -> tuple[str, str] | None:
    """The constraint that a gap's tag names, as it is written there; None where it names none."""
    given = [name for name in CONSTRAINTS if name in named]
    if len(given) > 1:
        raise PageError(
            f"Line {line_of(text, offset)}: a gap with {given[0]} and {given[1]}; give one of them.",
            code="bad_value",
        )
    if not given:
        return None
    kind, value = given[0], named[given[0]]
    if kind == "constraint":
        kind, _, value = value.partition(":")
    return kind, value


def size_of(text: str, offset: int, written: str | None) -> int | None:
    """The size that a gap's tag names, None where it names none."""
    if written is None:
        return None
    number = written.strip("\"'/ \t\n\f\r")
    if number.isascii() and number.isdecimal() and 1 <= int(number[:9]) <= MOST_SIZE:
        return int(number)
    raise PageError(
        f"Line {line_of(text, offset)}: a gap has the size {number[:20]!r}; give a number of tokens from 1 to"
        f" {MOST_SIZE:,}.",
        code="bad_value",
    )
