"""Attributes that override a picture's `src`: `srcset`, `<source>`, and lazy-loading attributes of scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cm3kit_tokenizers.html.addresses import LAZY, LAZY_SETS, candidates, sources_of
from cm3kit_tokenizers.html.gaps import PageGap
from cm3kit_tokenizers.html.spans import SPACE, Attribute, Element, Span, element, elements


@dataclass(frozen=True, slots=True)
class Cover:
    """Attributes that hide the picture of a gap: their byte ranges and names."""

    gap: PageGap
    spans: tuple[Span, ...]
    names: tuple[str, ...]


def covers_of(text: str, tree: Any, gaps: Sequence[PageGap]) -> Iterator[Cover]:
    """The covers of all gaps with pictures that have any."""
    drawn = [gap for gap in gaps if gap.kind == "image"]
    if not drawn:
        return
    images = [each for each in elements(text, tree) if each.html and each.name == "img"]
    for gap in drawn:
        image = next((each for each in images if each.start[0] < gap.start < each.start[1]), None)
        if image is None:
            continue
        found = list(hiding(text, image))
        if found:
            names = dict.fromkeys(name for name, _ in found)
            yield Cover(gap, tuple(attribute.span for _, attribute in found), tuple(names))


def hiding(text: str, image: Element) -> Iterator[tuple[str, Attribute]]:
    """The attributes that override the `src` of an `<img>`, each with its name."""
    for name in (*LAZY_SETS, *LAZY):
        if _says(text, attribute := image.attributes.get(name), name):
            assert attribute is not None
            yield name, attribute
    for handle in sources_of(image.handle):
        source = element(text, handle)
        for name in LAZY_SETS if source else ():
            assert source is not None
            if _says(text, attribute := source.attributes.get(name), name):
                assert attribute is not None
                yield "<source>", attribute


def _says(text: str, attribute: Attribute | None, name: str) -> bool:
    """Whether an attribute contains a picture's address."""
    value = text[slice(*attribute.value)] if attribute and attribute.value else ""
    return bool(candidates(value) if name in LAZY_SETS else value.strip(SPACE))
