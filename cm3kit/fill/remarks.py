"""What there is to say of results besides them: that all are the same, or that a prompt asks for what nobody taught."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from cm3kit.data.words import unknown_words

if TYPE_CHECKING:
    from cm3kit.fill.kit import Kit, Result

SHOWN = 8  # words that are named


def unknown(kit: Kit, prompts: Sequence[object]) -> Iterator[str]:
    """A line on words of prompts that the model's corpus does not have, where the model knows its corpus."""
    parts = getattr(kit, "parts", None)
    if parts is None:
        return
    found = dict.fromkeys(
        word
        for each in prompts
        if isinstance(each, str)
        for word in unknown_words(parts.folder / "text", each)
    )
    if found:
        named = ", ".join(repr(word) for word in [*found][:SHOWN]) + (", …" if len(found) > SHOWN else "")
        yield f"{parts.name} has never seen the words {named}: what it makes of them is a guess"


def content(result: Result) -> Hashable:
    """What a result is, without what tells it apart from others that are the same."""
    pixels = result.image.tobytes() if result.image is not None and not result.codes else b""
    return result.codes, pixels, result.text, result.html


def equal(results: Sequence[Sequence[Hashable]]) -> Iterator[str]:
    """A line where there were several results of a prompt and all are the same, for any number of prompts.

    Args:
        results: of each prompt, without what tells them apart (`content`).
    """
    several = [each for each in results if len(each) > 1]
    same = sum(len(set(each)) == 1 for each in several)
    if same:
        of = f" of {same} of {len(several)} prompts" if len(several) > 1 else ""
        yield f"all {len(several[0])} results{of} are equal; --temperature and --top-p make them differ"
