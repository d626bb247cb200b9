"""Rows of a sampling run whose outputs are all the same, found in its manifest once all of them are there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from cm3kit.batch.store import Key, Line, Made
from cm3kit.fill.equality import all_equal, content
from cm3kit.fill.kit import Filled, Result

CONTENT = "content_sha256"


def fingerprint(made: Result | Filled) -> str:
    """A hash of what an output is, without the recipe in its file."""
    return hashlib.sha256(repr(content(made)).encode("utf-8", "backslashreplace")).hexdigest()


def remarked(lines: Mapping[Key, Line], counts: Iterable[tuple[int, int]]) -> Iterator[Made]:
    """Lines anew, with a warning, of the rows whose outputs are all there and equal.

    Lines that have it already are left out. Whether a row gets it depends on its outputs alone, so that an interrupted
    run ends with the same lines as an uninterrupted one.

    Args:
        counts: number of a row, and of its outputs.
    """
    for row, count in counts:
        found = [lines[row, index] for index in range(count) if (row, index) in lines]
        if count < 2 or len(found) < count or len({each.get(CONTENT) for each in found}) > 1:
            continue
        if found[0].get(CONTENT) is None:  # failed, or of an earlier version
            continue
        said = all_equal(count)
        for line in found:
            if said not in line.get("warnings", ()):
                yield Made({**line, "warnings": [*line.get("warnings", ()), said]})
