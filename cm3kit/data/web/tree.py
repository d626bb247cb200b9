"""Edits to the tree of a page before it is thinned out: boilerplate, links, metas, addresses of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import translate
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urljoin

from cm3kit.data.web.settings import PageRules, PictureRules
from cm3kit_tokenizers.html.spans import SPACE
from cm3kit_tokenizers.vocab import ATTRIBUTES

LAZY_SETS = ("srcset", "data-srcset", "data-lazy-srcset")
LAZY = ("data-src", "data-original", "data-lazy-src", "data-lazy", "data-url", "data-image")
_UNSAFE = ("javascript:", "vbscript:", "data:", "file:", "#")
_MOST_ADDRESSES = 8


def edit(tree: Any, rules: PageRules) -> None:
    """Remove what the rules say, in place."""
    total = len(tree.text)
    for found in tree.select(",".join(rules.drop)) if rules.drop else ():
        if len(found.text) <= rules.drop_share * total and found.tag not in ("html", "body"):
            found.decompose()
    for name, what in rules.elements.items():
        for found in tree.find_all(name):
            found.decompose() if what == "drop" else found.unwrap()
    for name, kept in ATTRIBUTES.items():
        if gone := set(kept) - set(rules.attributes.get(name, ())):
            for found in tree.find_all(name):
                _without(found, gone)
    wanted = _metas(rules.metas)
    for meta in tree.find_all("meta"):
        name = "itemprop" if meta.attr("itemprop") else meta.attr("property") or meta.attr("name") or ""
        if not wanted.match(str(name).lower()):
            meta.decompose()
    for link in tree.find_all("a"):
        # Most links that are kept as they are can be told apart by a look.
        if rules.links != "keep" or ":" in (href := link.attr("href") or "") or "#" in href:
            _link(link, rules.links)


@lru_cache(maxsize=16)
def _metas(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)) or r"(?!)")


def _without(element: Any, names: set[str]) -> None:
    for name in names & set(element.attrs):
        del element.attrs[name]


def _link(link: Any, how: str) -> None:
    href = str(link.attr("href") or "").strip(SPACE)
    if how == "none":
        _without(link, {"href", "title"})
    elif how == "title" or href.lower().startswith(_UNSAFE):
        _without(link, {"href"})
    elif how == "entity":
        _, wiki, name = href.partition("/wiki/")
        if wiki and name:
            link.attrs["href"] = unquote(re.split("[?#]", name, maxsplit=1)[0]).replace(" ", "_")
        else:
            _without(link, {"href"})


def pictures(tree: Any, rules: PictureRules, url: str) -> list[tuple[str, ...]]:
    """Number the pictures of a page (`src="cm3://0"`, …), and return for each the addresses to try, best first.

    What `alt_from` names is written into an empty `alt`. The addresses are those of `srcset` and of `<source>`
    by their width, then those that scripts load later, then `src`: each joined to the base, then as it stands.
    """
    base = next((str(each.attr("href") or "") for each in tree.find_all("base") if each.attr("href")), "")
    base = join(url, base)
    found: list[tuple[str, ...]] = []
    for image in tree.find_all("img"):
        addresses = dict.fromkeys(
            address
            for raw in _addresses(image, rules.size)
            for address in (join(base, raw), raw.strip(SPACE))
            if address
        )
        if rules.alt_from and not str(image.attr("alt") or "").strip(SPACE):
            if alt := _alt(image, rules.alt_from):
                image.attrs["alt"] = alt
        image.attrs["src"] = f"cm3://{len(found)}"
        found.append(tuple(addresses)[:_MOST_ADDRESSES])
    return found


def join(base: str, address: str) -> str:
    """An address joined to a base; as it stands where that makes no sense."""
    try:
        return urljoin(base, address.strip(SPACE))
    except ValueError:
        return address.strip(SPACE)


def _addresses(image: Any, size: int) -> Iterator[str]:
    sets = [image]
    parent = image.parent
    if parent is not None and getattr(parent, "tag", "") == "picture":
        sets += [each for each in parent.children if getattr(each, "tag", "") == "source"]
    sized = [
        each for holder in sets for name in LAZY_SETS for each in candidates(str(holder.attr(name) or ""))
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


def _alt(image: Any, sources: tuple[str, ...]) -> str:
    for name in sources:
        if name != "figcaption":
            text = str(image.attr(name) or "")
        else:
            figure = image.closest("figure")
            caption = figure.find("figcaption") if figure is not None else None
            text = caption.text if caption is not None else ""
        if text.strip(SPACE):
            return " ".join(text.split())
    return ""


def rights(tree: Any, headers: Mapping[str, str]) -> dict[str, str]:
    """What a page and its HTTP headers say of language, licence, robots and text and data mining."""
    named: dict[str, list[str]] = {}
    for meta in tree.find_all("meta"):
        name = str(meta.attr("name") or meta.attr("property") or meta.attr("http-equiv") or "").lower()
        if name and meta.attr("content"):
            named.setdefault(name, []).append(str(meta.attr("content")).strip(SPACE))
    header = {name.lower(): value for name, value in headers.items()}
    root = tree.find("html")
    language = (root.attr("lang") or root.attr("xml:lang") or "") if root is not None else ""
    link = next(iter(tree.select("link[rel~=license][href],a[rel~=license][href]")), None)
    licences = [str(link.attr("href"))] if link is not None else []
    for name in ("dcterms.license", "dc.rights", "dcterms.rights", "license", "rights", "copyright"):
        licences += named.get(name, [])
    robots = [*named.get("robots", []), header.get("x-robots-tag", "")]
    tdm = [*named.get("tdm-reservation", []), header.get("tdm-reservation", "")]
    spoken = [header.get("content-language", ""), *named.get("content-language", [])]
    return {
        "lang": str(language or next(filter(None, spoken), ""))[:100],
        "license": next(iter(licences), "")[:500],
        "robots": ", ".join(filter(None, robots)).lower()[:500],
        "tdm": next(filter(None, tdm), "")[:500],
        "tdm_policy": next(iter([*named.get("tdm-policy", []), header.get("tdm-policy", "")]), "")[:500],
    }


def opted_out(found: Mapping[str, str]) -> bool:
    """Whether `rights` reserve text and data mining (TDMRep), or robots are told `noai`."""
    return found["tdm"].strip() == "1" or "noai" in re.split(r"[\s,:]+", found["robots"])
