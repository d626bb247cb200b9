"""One of the lines of a file, of which there may be millions: `trie:titles.txt`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cm3kit.decoders.grammar.rules import ConstraintKind, Texts, constraint, file_of
from cm3kit_tokenizers.errors import ConfigError


@constraint("trie")
class Trie(ConstraintKind):
    """A text file in UTF-8, a title a line."""

    def resolve(self, value: str, folder: Path | None) -> str:
        """The file's absolute path."""
        return str(file_of(value, folder, "trie"))

    def version(self, value: str) -> object:
        """Time and size of the file."""
        stat = Path(value).stat()
        return stat.st_mtime_ns, stat.st_size

    def rule(self, value: str) -> Texts:
        """Its lines, without those that are empty; ConfigError (`bad_value`) where it is no text."""
        try:
            lines = Path(value).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"trie {value} is no text in UTF-8: {error}; convert it.", code="bad_value"
            ) from None
        if lines and not lines[-1]:
            lines.pop()
        blank = sum(not line.strip() for line in lines)
        notes = (f"trie {value}: {blank:,} empty lines are left out.",) if blank else ()
        return Texts(_titles(lines), notes)


def _titles(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if title := line.strip():
            yield title
