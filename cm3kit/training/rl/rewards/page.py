"""Whether a page is well-formed; it is parsed, and no script runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from cm3kit.training.rl.rewards import RewardContext, RewardSettings, Sample, reward
from cm3kit_tokenizers.errors import Cm3kitError
from cm3kit_tokenizers.html.spans import elements, parse_tree, view

# Elements that have no end tag by the standard, or may leave it out (HTML, sec. 13.1.2).
NO_END = frozenset(
    "area base br col embed hr img input link meta source track wbr li dt dd p rt rp optgroup option colgroup caption"
    " thead tbody tfoot tr td th html head body".split()
)


@reward("valid-page")
class ValidPage:
    """The share of well-formed elements: closed, pictures with `src` and `alt`, ids that occur once.

    A text that was cut before its end costs half; what is no page gets 0, and what has no page None.
    """

    Settings: ClassVar[type[RewardSettings]] = RewardSettings

    def __init__(self, settings: Any, context: RewardContext) -> None:
        pass

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[float | None]:
        """See `Reward`."""
        return [
            None if each.html is None else validity(each.html) * (1.0 if each.ended else 0.5)
            for each in samples
        ]


def validity(html: str) -> float:
    """The share of well-formed elements of a page."""
    try:
        text = view(html.encode())
        found = list(elements(text, parse_tree(text)))
    except Cm3kitError:
        return 0.0
    ids: Counter[str] = Counter()
    wrong = 0
    for each in found:
        closed = each.end is not None or each.name in NO_END or not each.html
        values = {
            name: text[slice(*attribute.value)] if attribute.value else ""
            for name, attribute in each.attributes.items()
        }
        picture = each.name != "img" or (bool(values.get("src", "").strip()) and "alt" in values)
        if "id" in values:
            ids[values["id"]] += 1
        wrong += not (closed and picture)
    wrong += sum(count - 1 for count in ids.values())
    return max(0.0, 1 - wrong / len(found)) if found else 0.0
