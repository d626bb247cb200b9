"""Windows of a long page: the gaps that one canvas holds, and as much of the page around them as fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cm3kit.fill.layouts import Layout, Limits, gaps_of
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Window:
    """A part `start:stop` of a page's ids whose gaps are filled together."""

    start: int
    stop: int


def first_window(
    ids: Sequence[int | Gap], layout: Layout, limits: Limits, window: int, codes: range
) -> Window:
    """The first gaps of a page that fit `window` with their answers, and what is around them; no picture is cut.

    Args:
        codes: ids of image codes.

    Raises:
        ConfigError: a gap, or the pieces of one picture, do not fit (`too_long`).
    """
    costs = {place: layout.cost(gap, limits) for place, gap in gaps_of(ids)}
    return trim(ids, windows(ids, costs, window, layout.most_gaps)[0], codes)


def windows(
    ids: Sequence[int | Gap], costs: dict[int, int], window: int, most_gaps: int = 1 << 30
) -> list[Window]:
    """Cut a page around its gaps so that page and answers fit `window`; gaps that fit together stay together.

    Args:
        costs: for the index of each gap in `ids`, the most ids that it takes besides its own position.
        most_gaps: gaps of one window.

    Raises:
        ConfigError: the pieces of one picture do not fit (`too_long`).
    """
    groups: list[list[int]] = []
    for place in sorted(costs):
        group = [*groups[-1], place] if groups else [place]
        needs = sum(costs[each] for each in group) + group[-1] - group[0] + 1
        same = bool(groups) and _same_gap(ids[groups[-1][-1]], ids[place])
        fits = needs + 2 <= window - window // 4 and len(group) <= most_gaps
        if groups and (same or fits):
            groups[-1] = group
        else:
            groups.append([place])
    # What is around a window's gaps ends before the next gap: one that was laid out with them would not be counted.
    stops = [*(group[0] for group in groups[1:]), len(ids)]
    return [
        _around(stop, group, sum(costs[each] for each in group), window)
        for group, stop in zip(groups, stops, strict=True)
    ]


def _same_gap(first: int | Gap, second: int | Gap) -> bool:
    return isinstance(first, Gap) and isinstance(second, Gap) and first.index == second.index


def _around(stop: int, group: list[int], answers: int, window: int) -> Window:
    """The window of a group of gaps, on a page whose ids end at `stop` or whose next gap is there."""
    room = window - 2 - answers - (group[-1] - group[0] + 1)
    if room < 0:
        raise ConfigError(
            f"a gap needs {window - room} ids, but the model's window is {window}; lower --max-tokens or"
            " choose a smaller box.",
            code="too_long",
        )
    before = min(group[0], max(room // 2, room - (stop - group[-1] - 1)))
    after = min(stop - group[-1] - 1, room - before)
    return Window(group[0] - before, group[-1] + 1 + after)


def trim(ids: Sequence[int | Gap], window: Window, pictures: range) -> Window:
    """Narrow a window whose ends fall inside a picture's codes to the picture's edges."""
    start, stop = window.start, window.stop
    if start and _is_code(ids[start - 1], pictures):
        while start < stop and _is_code(ids[start], pictures):
            start += 1
    if stop < len(ids) and _is_code(ids[stop], pictures):
        while stop > start and _is_code(ids[stop - 1], pictures):
            stop -= 1
    gaps = [place for place in range(window.start, window.stop) if isinstance(ids[place], Gap)]
    return Window(min(start, gaps[0]), max(stop, gaps[-1] + 1))


def _is_code(id: int | Gap, pictures: range) -> bool:
    return isinstance(id, int) and id in pictures
