"""What the place allows and nothing else: minimal HTML in content, words in values. It is what gaps have anyway."""

from __future__ import annotations

from cm3kit.decoders.grammar.rules import ConstraintKind, constraint
from cm3kit_tokenizers.errors import ConfigError


@constraint("html")
class Html(ConstraintKind):
    """Takes no value."""

    def rule(self, value: str) -> None:
        """Nothing more; ConfigError (`bad_value`) where there is a value."""
        if value:
            raise ConfigError(
                f"constraint html takes no value, and has {value[:60]!r}; leave it out.", code="bad_value"
            )
