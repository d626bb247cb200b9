"""What browsers show instead of a picture's `src`: `srcset`, `<source>`, and what scripts put in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cm3kit_tokenizers.html.addresses import LAZY, LAZY_SETS, candidates, sources_of
from cm3kit_tokenizers.html.gaps import PageGap
from cm3kit_tokenizers.html.spans import SPACE, Attribute, Element, Span, element, elements


@dataclass(frozen=True, slots=True)
class Cover:
    """What hides the picture that is drawn into a gap: byte ranges of whole attributes, and what they are called."""

    gap: PageGap
    spans: tuple[Span, ...]
    names: tuple[str, ...]


def covers_of(text: str, tree: Any, gaps: Sequence[PageGap]) -> Iterator[Cover]:
    """What hides each picture that is drawn, where something does."""
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
    """The attributes by which another picture is shown than that of an `<img>`'s `src`, each with what it is called."""
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
    """Whether an attribute names a picture."""
    value = text[slice(*attribute.value)] if attribute and attribute.value else ""
    return bool(candidates(value) if name in LAZY_SETS else value.strip(SPACE))
