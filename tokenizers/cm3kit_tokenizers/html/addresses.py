"""The addresses of a page's pictures, by the same rules for filling and training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from cm3kit_tokenizers.html.outline import SPACE
from cm3kit_tokenizers.pictures import tidied

LAZY_SETS = ("srcset", "data-srcset", "data-lazy-srcset")
LAZY = (
    "data-src", "data-original", "data-lazy-src", "data-lazy", "data-url", "data-image", "data-lazysrc",
    "data-original-src", "data-cfsrc", "data-ezsrc", "data-pagespeed-lazy-src", "data-flickity-lazyload",
    "data-hi-res-src", "data-src-retina", "ng-src",
)  # fmt: skip
"""Attributes in which scripts find the picture that they put in the place of `src`."""
OTHERS = ("svg", "canvas", "video", "audio", "object", "embed", "iframe")
"""Elements that a caption can be about, and that are no pictures which a model reads."""
SIDE = 256
"""The default target width in pixels among several candidates."""
MOST_ADDRESSES = 8


@dataclass(frozen=True, slots=True)
class Unopened:
    """A picture of a page that is not used: the tried addresses, and the related gaps.

    `instead` is the address of the placeholder that is used in its place; `element` is what is not an `<img>`.
    """

    addresses: tuple[str, ...]
    gaps: tuple[int, ...]
    instead: str = ""
    element: str = "img"


def base_of(tree: Any, url: str = "") -> str:
    """The base URL of a page: its first `<base href>`, resolved against the URL of the page."""
    href = next((str(each.attr("href") or "") for each in tree.find_all("base") if each.attr("href")), "")
    return join(url, href)


def join(base: str, address: str) -> str:
    """An address resolved against a base; unchanged if that fails."""
    address = tidied(address)
    try:
        return urljoin(base, address)
    except ValueError:
        return address


def addresses_of(image: Any, base: str, size: int = SIDE) -> tuple[str, ...]:
    """The addresses to try for the picture of an `<img>`, best first.

    Those of `srcset` and of `<source>` by width, then those of lazy loading, then `src`: each resolved against the
    base, then as written.
    """
    found = dict.fromkeys(
        address for raw in _raw(image, size) for address in (join(base, raw), raw.strip(SPACE)) if address
    )
    return tuple(found)[:MOST_ADDRESSES]


def plain_addresses(src: str, base: str) -> tuple[str, ...]:
    """The addresses to try for a single `src`."""
    return tuple(dict.fromkeys(each for each in (join(base, src), src.strip(SPACE)) if each))


def sources_of(image: Any) -> list[Any]:
    """The `<source>`s of an `<img>`'s `<picture>` that browsers use: those before it."""
    parent = image.parent
    if parent is None or getattr(parent, "tag", "") != "picture":
        return []
    found = []
    for each in parent.children:
        if each == image:
            break
        if getattr(each, "tag", "") == "source":
            found.append(each)
    return found


def _raw(image: Any, size: int) -> Iterator[str]:
    holders = [image, *sources_of(image)]
    sized = [
        each for holder in holders for name in LAZY_SETS for each in candidates(str(holder.attr(name) or ""))
    ]
    # The smallest that is large enough, otherwise the largest.
    sized.sort(key=lambda each: (each[1] < size, each[1] if each[1] >= size else -each[1]))
    yield from (address for address, _ in sized)
    yield from (str(image.attr(name)) for name in LAZY if image.attr(name))
    src = str(image.attr("src") or "")
    # What stands in the page itself while a script loads the picture is none.
    if src and not (tidied(src)[:5].lower() == "data:" and _is_lazy(image)):
        yield src


def _is_lazy(image: Any) -> bool:
    """Whether a script puts another picture in the place of an `<img>`'s `src`."""
    return any(image.attr(name) for name in (*LAZY, *LAZY_SETS[1:]))


def candidates(srcset: str) -> list[tuple[str, float]]:
    """Addresses of a `srcset` with their widths in pixels; a density of x counts as x times 320.

    Parsed as in browsers except for parentheses; not by a regular expression, which could backtrack for minutes.
    """
    found: list[tuple[str, float]] = []
    at, end = 0, min(len(srcset), 65536)
    while True:
        while at < end and (srcset[at].isspace() or srcset[at] == ","):
            at += 1
        if at == end:
            return found
        start = at
        while at < end and not srcset[at].isspace():
            at += 1
        address = srcset[start:at].rstrip(",")
        width = 320.0
        if at - start == len(address):
            comma = srcset.find(",", at, end)
            start, at = at, comma if comma >= 0 else end
            for unit in srcset[start:at].split():
                if number := re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([wx])", unit):
                    width = float(number[1]) * (320 if number[2] == "x" else 1)
        found.append((address, width))


def settle(tree: Any, usable: Callable[[str], bool], mark: re.Pattern[str]) -> list[Unopened]:
    """Set the `src` of every `<img>` of a tree to its first usable address, or remove its `src`.

    Args:
        usable: whether an address is used.
        mark: pattern of gaps; a `src` that is a gap is unchanged, one that contains a gap keeps it.

    Returns:
        The pictures that are not used, except those in `<template>` and `<noscript>`.
    """
    base, lost = base_of(tree), []
    for image in tree.find_all("img"):
        src = str(image.attr("src") or "")
        gaps = "".join(found[0] for found in mark.finditer(src))
        rest = mark.sub("", src)
        if gaps and not rest.strip(SPACE):
            continue
        tried = plain_addresses(rest, base) if gaps else addresses_of(image, base)
        address = next(filter(usable, tried), tried[-1] if gaps else None)
        if address is not None:
            held = plain_addresses(src, base)
            if not gaps and address in held and tried[0] not in held and _is_lazy(image):
                before = tuple(each for each in tried if each not in held)
                lost.append(Unopened(before, _about(image, mark), instead=address))
            image.attrs["src"] = gaps + address
            continue
        if "src" in image.attrs:
            del image.attrs["src"]
        if image.closest("template, noscript") is None:
            lost.append(Unopened(tried, _about(image, mark)))
    return [*lost, *_others(tree, mark)]


def _others(tree: Any, mark: re.Pattern[str]) -> Iterator[Unopened]:
    """Drawings and films that gaps are about: that they stand in, or whose caption they are."""
    for drawing in tree.find_all("svg"):
        if gaps := _gaps(drawing.text, mark):
            yield Unopened((), gaps, element="svg")
    for figure in tree.find_all("figure"):
        if figure.find("img") is None:
            held = next((name for name in OTHERS if figure.find(name) is not None), "")
            captions = "".join(each.text for each in figure.find_all("figcaption"))
            if held and (gaps := _gaps(captions, mark)):
                yield Unopened((), gaps, element=held)


def _gaps(text: str, mark: re.Pattern[str]) -> tuple[int, ...]:
    return tuple(int(found[1]) for found in mark.finditer(text))


def _about(image: Any, mark: re.Pattern[str]) -> tuple[int, ...]:
    """The gaps in a picture's attributes, and in the caption of a figure that has no other picture."""
    words = [str(image.attr(name) or "") for name in ("alt", "title")]
    figure = image.closest("figure")
    if figure is not None and len(figure.find_all("img")) == 1:
        words += [each.text for each in figure.find_all("figcaption")]
    return tuple(index for text in words for index in _gaps(text, mark))
