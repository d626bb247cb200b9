"""The addresses of a page's pictures: one set of rules for pages that are filled and pages that are trained on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from cm3kit_tokenizers.html.outline import SPACE
from cm3kit_tokenizers.pictures import tidied

LAZY_SETS = ("srcset", "data-srcset", "data-lazy-srcset")
LAZY = ("data-src", "data-original", "data-lazy-src", "data-lazy", "data-url", "data-image")
SIDE = 256
"""The width in pixels that is looked for among several, unless somebody asks for another."""
MOST_ADDRESSES = 8


@dataclass(frozen=True, slots=True)
class Unopened:
    """A picture of a page that is not used: the addresses that were tried, and the gaps that are about it."""

    addresses: tuple[str, ...]
    gaps: tuple[int, ...]


def base_of(tree: Any, url: str = "") -> str:
    """What addresses of a page are joined to: its first `<base href>`, itself joined to the address of the page."""
    href = next((str(each.attr("href") or "") for each in tree.find_all("base") if each.attr("href")), "")
    return join(url, href)


def join(base: str, address: str) -> str:
    """An address joined to a base; as it stands where that makes no sense."""
    address = tidied(address)
    try:
        return urljoin(base, address)
    except ValueError:
        return address


def addresses_of(image: Any, base: str, size: int = SIDE) -> tuple[str, ...]:
    """The addresses to try for the picture of an `<img>`, best first.

    Those of `srcset` and of `<source>` by their width, then those that scripts load later, then `src`: each joined
    to the base, then as it stands.
    """
    found = dict.fromkeys(
        address for raw in _raw(image, size) for address in (join(base, raw), raw.strip(SPACE)) if address
    )
    return tuple(found)[:MOST_ADDRESSES]


def plain_addresses(src: str, base: str) -> tuple[str, ...]:
    """The addresses to try for a `src` alone."""
    return tuple(dict.fromkeys(each for each in (join(base, src), src.strip(SPACE)) if each))


def sources_of(image: Any) -> list[Any]:
    """The `<source>`s of an `<img>`'s `<picture>` that browsers look at: those that stand before it."""
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
    # The smallest that is large enough, and where none is, the largest.
    sized.sort(key=lambda each: (each[1] < size, each[1] if each[1] >= size else -each[1]))
    yield from (address for address, _ in sized)
    yield from (str(image.attr(name)) for name in LAZY if image.attr(name))
    if image.attr("src"):
        yield str(image.attr("src"))


def candidates(srcset: str) -> list[tuple[str, float]]:
    """Addresses of a `srcset` with their widths in pixels; a density of x counts as x times 320.

    As browsers read it, but for parentheses; by hand, since a pattern of this kind backtracks for minutes.
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
    """Give every `<img>` of a tree the address by which its picture is used as its `src`, or take its `src` away.

    Args:
        usable: says of an address whether it is used.
        mark: what stands for a gap; a `src` that is one stays, one that holds one keeps it.

    Returns:
        The pictures that are not used, but for those in templates and of pages without scripts.
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
            image.attrs["src"] = gaps + address
            continue
        if "src" in image.attrs:
            del image.attrs["src"]
        if image.closest("template, noscript") is None:
            lost.append(Unopened(tried, _about(image, mark)))
    return lost


def _about(image: Any, mark: re.Pattern[str]) -> tuple[int, ...]:
    """The gaps in a picture's own words, and in the caption of a figure that holds no other."""
    words = [str(image.attr(name) or "") for name in ("alt", "title")]
    figure = image.closest("figure")
    if figure is not None and len(figure.find_all("img")) == 1:
        words += [each.text for each in figure.find_all("figcaption")]
    return tuple(int(found[1]) for text in words for found in mark.finditer(text))
