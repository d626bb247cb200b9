"""Edits to the tree of a page before minimisation: boilerplate, links, metas, addresses of pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from cm3kit.web.settings import PageRules, PictureRules
from cm3kit_tokenizers.html.addresses import addresses_of, base_of
from cm3kit_tokenizers.html.spans import SPACE
from cm3kit_tokenizers.vocab import ATTRIBUTES

_UNSAFE = ("javascript:", "vbscript:", "data:", "file:", "#")


def edit(tree: Any, rules: PageRules) -> None:
    """Apply the rules in place."""
    dropped = tree.select(",".join(rules.drop)) if rules.drop else []
    total = len(tree.text) if dropped else 0
    for found in dropped:
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
        # A cheap test finds most links that stay unchanged.
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

    An empty `alt` is filled from `alt_from`. See `addresses_of`.
    """
    base = base_of(tree, url)
    found: list[tuple[str, ...]] = []
    for image in tree.find_all("img"):
        addresses = addresses_of(image, base, rules.size)
        if rules.alt_from and not str(image.attr("alt") or "").strip(SPACE):
            if alt := _alt(image, rules.alt_from):
                image.attrs["alt"] = alt
        image.attrs["src"] = f"cm3://{len(found)}"
        found.append(addresses)
    return found


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
    """Language, licence, robots and text-and-data-mining fields of a page and its HTTP headers."""
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
    """Whether `rights` reserve text and data mining (TDMRep), or contain `noai`."""
    return found["tdm"].strip() == "1" or "noai" in re.split(r"[\s,:]+", found["robots"])
