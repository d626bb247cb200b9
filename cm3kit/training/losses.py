"""Losses of a corpus on the way to a decoder: pages in slices, pictures left out, empty positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm3kit.data.views import ViewSettings
from cm3kit.json_lines import objects


def of_documents(lengths: Sequence[int], room: int, lost: int, sees: bool = True) -> str:
    """A line on documents of a folder: how many are longer than the ids that a row has room for, pictures dropped.

    Args:
        sees: whether the model knows pictures, or words alone.
    """
    why = "as the folder does not hold them" if sees else "as the recipe has no image tokenizer"
    long = sum(each > room for each in lengths)
    pictures = f"{lost:,} pictures are left out, {why}" if lost else "no picture is left out"
    sliced = f"{_share(long, len(lengths))} longer than {room:,} ids and read in slices"
    return f"data: {len(lengths):,} pages, {sliced}; {pictures}"


def of_shards(index: dict[str, Any], lengths: Sequence[int], room: int) -> str:
    """The same of packed shards, by their index; those of before it told say less."""
    long = sum(each > room for each in lengths)
    told = f"data: {len(lengths):,} documents, {_share(long, len(lengths))} longer than {room:,} ids and read in slices"
    if "sliced" not in index:
        return told
    pages = f"{_share(index['sliced'], index['pages'])} of {index['pages']:,} pages were cut when they were packed"
    return f"{told}; {pages}, and {index['too_short']:,} rests were too short"


def of_views(asked: ViewSettings, used: ViewSettings | None) -> list[str]:
    """A line where the encodings that a recipe asks for are not those that pages show; `used` is None for shards."""
    own, said = {"scored"}, ViewSettings()
    if asked == said or (used and asked.model_dump(exclude=own) == used.model_dump(exclude=own)):
        return []
    if used is None:
        return [
            "views: not used, since token shards hold one encoding of each picture; train on pages or on a bundle"
        ]
    if used.several:
        return [
            f"views: a bundle has its own ({used.count} encodings); of the recipe's, scored alone is used"
        ]
    return ["views: nothing is augmented, since views.count is 1 and views.swap is 0"]


def filled(log: Path) -> str | None:
    """A line on how full rows were over a run, by its log; None where it does not say."""
    steps = objects(log.read_bytes()) if log.is_file() else ()
    shares = [figures["filled"] for figures in steps if isinstance(figures.get("filled"), int | float)]
    return f"rows: {sum(shares) / len(shares):.0%} of their positions held an id" if shares else None


def _share(some: int, all_: int) -> str:
    return f"{some:,} ({some / max(1, all_):.0%})"
