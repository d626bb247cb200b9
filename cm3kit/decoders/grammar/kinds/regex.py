"""All of a regular expression: `regex:[0-9]{4}`."""

from __future__ import annotations

from cm3kit.decoders.grammar.rules import ConstraintKind, Regex, constraint


@constraint("regex")
class RegexKind(ConstraintKind):
    """A pattern that the whole answer matches."""

    def rule(self, value: str) -> Regex:
        """This pattern."""
        return Regex(value)
