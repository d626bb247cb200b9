"""Rows that describe a page in other words, as HTML: interleaved texts and pictures, or a picture and its caption."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cm3kit.data.web.reasons import Refused
from cm3kit.data.web.record import Find
from cm3kit.data.web.sources import Item, SourceOptions, about
from cm3kit_tokenizers.errors import PictureError
from cm3kit_tokenizers.html.escape import escape_attribute, escape_text
from cm3kit_tokenizers.pictures import resolve_src

URLS = ("url", "page_url", "document_url", "source_url")
CAPTIONS = ("caption", "text", "txt", "TEXT", "alt")
PICTURES = ("image", "jpg", "png", "webp", "image_url", "url", "URL", "image_path")


def html_of(texts: Sequence[object], images: Sequence[object]) -> bytes:
    """A page of paragraphs and pictures in turn; OBELICS' and MINT-1T's parallel lists with nulls in them."""
    parts = []
    for place in range(max(len(texts), len(images))):
        text = texts[place] if place < len(texts) else None
        image = images[place] if place < len(images) else None
        if image:
            parts.append(f'<p><img src="{escape_attribute(str(image))}"></p>')
        if text:
            blocks = re.split(r"\n\s*\n", str(text))
            parts += [f"<p>{escape_text(each)}</p>" for each in blocks if each.strip()]
    return "".join(parts).encode("utf-8", "replace")


def pair(caption: object, image: str) -> bytes:
    """A page of one picture; `alt` comes before `src`, so this is text to image read from left to right."""
    alt, src = escape_attribute(str(caption or "")), escape_attribute(image)
    return f'<img alt="{alt}" src="{src}">'.encode("utf-8", "replace")


def finder(known: Mapping[str, object], options: SourceOptions) -> Find:
    """Pictures that come with the row, then those of the folder `--pictures` by address, SHA-256 of it, or name."""

    def find(address: str) -> bytes:
        value = known.get(address)
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if isinstance(data, bytes):
            return data
        if address[:5].lower() == "data:":
            return resolve_src(address, None)
        if options.pictures:
            return _in_folder(address, Path(options.pictures))
        raise Refused("remote" if "//" in address else "no_file")

    return find


def _in_folder(address: str, folder: Path) -> bytes:
    name = unquote(urlsplit(address).path.rsplit("/", 1)[-1]) if "//" in address else ""
    digest = hashlib.sha256(address.encode("utf-8", "replace")).hexdigest()
    tried = [address, *(digest + suffix for suffix in ("", ".jpg", ".png", ".webp")), name]
    for each in tried:
        try:
            return resolve_src(each, folder)
        except PictureError as error:
            if error.code == "bad_picture":
                raise
    raise Refused("remote" if "//" in address else "no_file")


def item(key: str, row: Mapping[str, Any], kind: str, options: SourceOptions) -> Item:
    """A row as a page, by the columns that it has: `html`; `texts` and `images`; `text_list` and `image_info`;
    or a caption and a picture. `options.columns` maps these names to those of the row.
    """
    row = {**row, **{name: row[other] for name, other in options.columns.items() if other in row}}
    url = next((row[name] for name in URLS if isinstance(row.get(name), str)), "")
    rest = {name: value for name, value in row.items() if isinstance(value, str | int | float | bool)}
    meta = {name: value for name, value in rest.items() if name not in ("html", "text", *URLS)}
    told = about(kind, url, meta, row.get("license"))
    if row.get("html") is not None:
        html = row["html"]
        data = html if isinstance(html, bytes) else str(html).encode("utf-8", "replace")
        return Item(key, data, finder(_pictures(row.get("images")), options), told)
    if row.get("texts") is not None:
        named, known = _listed(row.get("images") or [])
        return Item(key, html_of(row["texts"], named), finder(known, options), told)
    if row.get("text_list") is not None:
        return Item(key, _mmc4(row), finder({}, options), told)
    image = next(((name, row[name]) for name in PICTURES if row.get(name) is not None), None)
    caption = next((row[name] for name in CAPTIONS if row.get(name) is not None), None)
    if image is None or caption is None:
        return Item(
            key, None, reason="unreadable", detail=f"no page in the columns {', '.join(map(str, row))}"
        )  # fmt: skip
    named, known = _listed([image[1]])
    return Item(key, pair(caption, str(named[0])), finder(known, options), told)


def _listed(images: Sequence[object]) -> tuple[list[object], dict[str, object]]:
    """Addresses for a list of addresses, of bytes, or of structs with either."""
    named: list[object] = []
    known: dict[str, object] = {}
    for place, image in enumerate(images):
        if isinstance(image, Mapping):
            path = image.get("url") or image.get("src") or image.get("path")
            image = image.get("bytes") or path
        if isinstance(image, bytes):
            known[f"row/{place}"] = image
            image = f"row/{place}"
        named.append(image)
    return named, known


def _pictures(images: object) -> dict[str, object]:
    rows = images if isinstance(images, Sequence) else ()
    return {
        str(each.get("src") or each.get("path")): each.get("bytes")
        for each in rows
        if isinstance(each, Mapping)
    }


def _mmc4(row: Mapping[str, Any]) -> bytes:
    """Sentences, each after the pictures that were matched with it (arXiv:2304.06939)."""
    before: dict[int, list[str]] = {}
    for info in row.get("image_info") or []:
        name = info.get("image_name") or info.get("raw_url")
        before.setdefault(int(info.get("matched_text_index") or 0), []).append(str(name))
    texts: list[object] = []
    images: list[object] = []
    for place, text in enumerate(row["text_list"]):
        for name in before.get(place, []):
            texts.append(None)
            images.append(name)
        texts.append(text)
        images.append(None)
    return html_of(texts, images)
