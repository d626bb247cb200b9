"""What there is to say of a prompt besides its results: words that the model never saw, and what it does not read."""

from __future__ import annotations

from collections.abc import Iterable

from cm3kit.data.words import unknown_words
from cm3kit.fill.fillers import Ids, LoadedModel
from cm3kit.fill.layouts import gaps_of
from cm3kit.fill.options import GenerateOptions, chosen_decoder

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


def unread(kit: LoadedModel, ids: Ids, options: GenerateOptions) -> tuple[str, ...]:
    """A line on words and pictures behind a gap that a model which only reads on does not see."""
    parts = getattr(kit, "parts", None)
    if parts is None or parts.public or parts.defaults.layout != "continue":
        return ()
    first = next((place for place, _ in gaps_of(ids)), len(ids))
    behind = any(isinstance(each, int) and each >= kit.vocab.text.start for each in ids[first:])
    if not behind or chosen_decoder(parts.defaults, options, parts.name) != "cm3":
        return ()
    return (
        f"{parts.name} is a next-token model: of the page it reads what is before a gap, and not what follows",
    )
