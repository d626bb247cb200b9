"""Results of one prompt that are all the same, which is said of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from cm3kit.fill.filling import Filled
from cm3kit.fill.tasks import Result

Made = TypeVar("Made", bound=Result | Filled)


def content(result: Result | Filled) -> Hashable:
    """What a result is, without what tells it apart from others that are the same."""
    if isinstance(result.html, bytes):
        return result.html
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
        yield all_equal(len(several[0]), of)


def all_equal(count: int, of: str = "") -> str:
    """The line on results of a prompt that are all the same."""
    return f"all {count} results{of} are equal; temperature and top-p make them differ"


def remarked(results: list[Made]) -> list[Made]:
    """Results of one prompt or page, each with the line where all are equal."""
    more: tuple[str, ...] = (*equal([[content(each) for each in results]]),)
    return [replace(each, warnings=(*each.warnings, *more)) for each in results] if more else results


def joined(results: Iterable[Result | Filled]) -> list[str]:
    """The lines on several results, each once."""
    return [*dict.fromkeys(line for each in results for line in each.warnings)]
