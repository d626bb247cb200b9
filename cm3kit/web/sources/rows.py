"""Rows converted to HTML: interleaved texts and pictures, a picture and its caption, a text.

Names and types of the columns decide what a row is. Values of other types are refused with a reason, never converted
to a string.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cm3kit.web.reasons import Refused
from cm3kit.web.record import Find
from cm3kit.web.sources import Item, SourceOptions, about
from cm3kit.web.urls import normal
from cm3kit_tokenizers.errors import PictureError
from cm3kit_tokenizers.html.escape import escape_attribute, escape_text
from cm3kit_tokenizers.pictures import resolve_src
from cm3kit_tokenizers.site import Site

URLS = ("url", "page_url", "document_url", "source_url", "URL", "uri")
CAPTIONS = ("caption", "TEXT", "alt", "text", "txt", "title", "description", "alt_text")
TEXTS = ("text", "content", "TEXT", "txt")
PICTURES = (
    "image", "jpg", "jpeg", "png", "webp", "gif", "image_url", "image_path", "img", "picture",
)  # fmt: skip
"""Names of columns with a picture or its address; `FILES` and `URLS` may be too, see `is_picture_address`."""
FILES = ("filepath", "file_path", "file_name", "filename", "path", "src")
_PICTURE_SUFFIX = re.compile(r"\.(?:png|jpe?g|jfif|webp|gif|avif|bmp)\Z", re.I)


def html_of(texts: Sequence[object], images: Sequence[object]) -> bytes:
    """A page of interleaved paragraphs and pictures; OBELICS' and MINT-1T's parallel lists with nulls.

    Raises:
        Refused: bad_row for a value that is neither text nor the address of a picture.
    """
    parts = []
    for place in range(max(len(texts), len(images))):
        text = texts[place] if place < len(texts) else None
        image = images[place] if place < len(images) else None
        if image is not None and image != "":
            parts.append(f'<p><img src="{escape_attribute(as_text(image, "images"))}"></p>')
        if text is not None and text != "":
            blocks = re.split(r"\n\s*\n", as_text(text, "texts"))
            parts += [f"<p>{escape_text(each)}</p>" for each in blocks if each.strip()]
    return "".join(parts).encode("utf-8", "replace")


def pair(caption: str, image: str) -> bytes:
    """A page of one picture; `alt` comes before `src`, so left to right it is text to image."""
    return f'<img alt="{escape_attribute(caption)}" src="{escape_attribute(image)}">'.encode(
        "utf-8", "replace"
    )


def finder(known: Mapping[str, object], options: SourceOptions) -> Find:
    """Looks up pictures in the row, then in the folder `--pictures` by address, its SHA-256, or name."""
    spelt = {normal(address): value for address, value in known.items()}

    def find(address: str) -> bytes:
        value = known.get(address, spelt.get(normal(address)))
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
    last = urlsplit(address).path.rsplit("/", 1)[-1] if "//" in address else ""
    names = dict.fromkeys((address, normal(address)))
    digests = [hashlib.sha256(each.encode("utf-8", "replace")).hexdigest() for each in names]
    tried = [*names, *(digest + suffix for digest in digests for suffix in ("", ".jpg", ".png", ".webp"))]
    if "//" in address:
        # The last path segment with its query before the name only.
        tried += [address.rsplit("/", 1)[-1], last, unquote(last)]
    for each in tried:
        try:
            return Site(folder)(each)
        except PictureError as error:
            if error.code == "bad_picture":
                raise
    raise Refused("remote" if "//" in address else "no_file")


def is_picture_address(value: str) -> bool:
    """Whether a text is the address of a picture, by the suffix of its path."""
    if len(value) > 4096 or "\n" in value.strip():
        return False
    path = re.split(r"[?#]", value.strip(), maxsplit=1)[0]
    return value[:11].lower() == "data:image/" or _PICTURE_SUFFIX.search(path) is not None


def is_address(value: str) -> bool:
    """Whether a text is a URL or the name of a picture file, and not prose."""
    value = value.strip()
    return re.fullmatch(r"(?:https?|ftp|file|s3|gs)://\S+|data:image/\S+", value, re.I) is not None or (
        is_picture_address(value) and len(value.split()) <= 3
    )


def item(key: str, row: Mapping[str, Any], kind: str, options: SourceOptions) -> Item:
    """A row as a page, by the columns that it has: `html`; `texts` and `images`; `text_list` and `image_info`;
    a caption and a picture; or a text. `options.columns` maps these names to those of the row.

    Any other row, or one with a value of another type, is an item with a reason.
    """
    try:
        row = {**row, **{name: row[other] for name, other in options.columns.items() if other in row}}
        url = next((row[name] for name in URLS if isinstance(row.get(name), str)), "")
        meta = {
            str(name): value
            for name, value in row.items()
            if isinstance(value, str | int | float | bool) and name not in ("html", "text", *URLS)
        }
        found = _page(row, options)
        told = about(kind, "" if is_picture_address(url) else url, meta, row.get("license"))
        return replace(found, key=key, about=told)
    except Refused as refused:
        return Item(key, None, reason=refused.reason, detail=refused.detail)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        return Item(key, None, reason="bad_row", detail=f"{type(error).__name__}: {error}")


def _page(row: Mapping[str, Any], options: SourceOptions) -> Item:
    if row.get("html") is not None:
        html = row["html"]
        data = html if isinstance(html, bytes) else as_text(html, "html").encode("utf-8", "replace")
        return Item("", data, finder(_pictures(row.get("images")), options))
    if row.get("texts") is not None:
        named, known = listed(_list(row.get("images") or [], "images"))
        return Item("", html_of(_list(row["texts"], "texts"), named), finder(known, options))
    if row.get("text_list") is not None:
        return Item("", _mmc4(row), finder({}, options))
    picture = _picture_of(row)
    if picture is not None:
        name, image = picture
        caption = next((each for each in CAPTIONS if each != name and row.get(each) is not None), None)
        if caption is None:
            raise Refused(
                "bad_row", f"a picture ({name}) without text; name its column: --column caption=NAME"
            )
        named, known = listed([image])
        return Item("", pair(as_text(row[caption], caption), as_text(named[0], name)), finder(known, options))
    words = next((name for name in TEXTS if isinstance(row.get(name), str | bytes)), None)
    if words is not None:
        return Item("", html_of([row[words]], []), finder({}, options))
    names = ", ".join(map(str, row)) or "none"
    raise Refused("bad_row", f"no page in the columns {names}; map them with --column caption=NAME")


def _picture_of(row: Mapping[str, Any]) -> tuple[str, object] | None:
    """The column with the picture, by its name and content: bytes, a struct with them, or an address."""
    for name in PICTURES:
        value = row.get(name)
        if isinstance(value, Mapping) and (
            value.get("bytes") is not None or isinstance(value.get("path"), str)
        ):
            return name, value
        if isinstance(value, bytes) or (isinstance(value, str) and value.strip()):
            return name, value
        if value is not None and value != "":
            raise Refused("bad_row", f"{name} is a {type(value).__name__}, neither a picture nor an address")
    for name in FILES:
        if isinstance(value := row.get(name), str) and is_picture_address(value):
            return name, value
    for name in URLS:
        value = row.get(name)
        # With a caption it is the picture's address; with a text only if it looks like one.
        captioned = any(
            isinstance(row.get(each), str | bytes) for each in ("caption", "TEXT", "alt", "alt_text")
        )
        if isinstance(value, str) and value.strip() and (captioned or is_picture_address(value)):
            return name, value
    return None


def as_text(value: object, name: str) -> str:
    """A text, or bytes decoded as UTF-8; Refused (bad_row) for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("bad_row", f"{name} holds bytes that are not UTF-8") from None
    raise Refused("bad_row", f"{name} is a {type(value).__name__}, not text")


def _list(value: object, name: str) -> Sequence[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value
    raise Refused("bad_row", f"{name} is a {type(value).__name__}, not a list")


def listed(images: Sequence[object]) -> tuple[list[object], dict[str, object]]:
    """Addresses of a list of addresses, bytes, or structs with either; Refused (bad_row) for others."""
    named: list[object] = []
    known: dict[str, object] = {}
    for place, image in enumerate(images):
        if isinstance(image, Mapping):
            path = image.get("url") or image.get("src") or image.get("path")
            image = image.get("bytes") or path
        if isinstance(image, bytes):
            known[f"row/{place}"] = image
            image = f"row/{place}"
        if image is not None and not isinstance(image, str):
            raise Refused(
                "bad_row", f"image {place} is a {type(image).__name__}, neither a picture nor an address"
            )
        named.append(image)
    return named, known


def _pictures(images: object) -> dict[str, object]:
    rows = images if isinstance(images, Sequence) and not isinstance(images, str | bytes) else ()
    return {
        name: each.get("bytes")
        for each in rows
        if isinstance(each, Mapping) and isinstance(name := each.get("src") or each.get("path"), str)
    }


def _mmc4(row: Mapping[str, Any]) -> bytes:
    """Sentences, each after the pictures matched with it (arXiv:2304.06939)."""
    sentences = _list(row["text_list"], "text_list")
    before: dict[int, list[str]] = {}
    for info in _list(row.get("image_info") or [], "image_info"):
        if not isinstance(info, Mapping):
            raise Refused("bad_row", f"image_info holds a {type(info).__name__}")
        place = info.get("matched_text_index") or 0
        if not isinstance(place, int) or not 0 <= place < max(1, len(sentences)):
            raise Refused("bad_row", f"image_info: no sentence {str(place)[:20]!r}")
        name = info.get("image_name") or info.get("raw_url")
        before.setdefault(place, []).append(as_text(name, "image_info"))
    texts: list[object] = []
    images: list[object] = []
    for place, text in enumerate(sentences):
        for name in before.get(place, []):
            texts.append(None)
            images.append(name)
        texts.append(text)
        images.append(None)
    return html_of(texts, images)
