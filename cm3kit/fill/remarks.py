"""What there is to say of a prompt besides its results: that the model has never seen a word of it."""

from __future__ import annotations

from collections.abc import Iterable

from cm3kit.data.words import unknown_words
from cm3kit.fill.fillers import LoadedModel

SHOWN = 8  # words that are named


def unknown(kit: LoadedModel, texts: Iterable[object]) -> tuple[str, ...]:
    """A line on words of prompts or pages that the model's corpus does not have, where the model knows its corpus."""
    parts = getattr(kit, "parts", None)
    if parts is None:
        return ()
    found = dict.fromkeys(
        word for each in texts if isinstance(each, str) for word in unknown_words(parts.folder / "text", each)
    )
    if not found:
        return ()
    named = ", ".join(repr(word) for word in [*found][:SHOWN]) + (", …" if len(found) > SHOWN else "")
    return (f"{parts.name} has never seen the words {named}: what it makes of them is a guess",)
