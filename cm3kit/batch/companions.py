"""Files that a page needs beside it: copied into another folder, or reported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cm3kit_tokenizers.errors import PictureError
from cm3kit_tokenizers.html.addresses import LAZY, LAZY_SETS, base_of, candidates, join
from cm3kit_tokenizers.html.spans import parse_tree
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.site import Site

# Types of files that are copied; other files that a page refers to are reported.
SUFFIXES = frozenset(
    ".css .js .mjs .woff .woff2 .ttf .otf .eot .png .jpg .jpeg .jfif .webp .gif .avif .bmp .svg .ico .apng .mp4 .webm"
    " .ogv .mp3 .ogg .oga .wav .m4a .vtt .wasm .webmanifest".split()
)
MOST_FILES, MOST_BYTES = 500, 256 << 20
_ATTRIBUTES = {
    "img": ("src", *LAZY), "source": ("src", *LAZY), "script": ("src",), "video": ("src", "poster"),
    "audio": ("src",), "track": ("src",), "embed": ("src",), "object": ("data",), "input": ("src",),
    "iframe": ("src",), "frame": ("src",), "body": ("background",), "table": ("background",), "td": ("background",),
    "image": ("href", "xlink:href"), "use": ("href", "xlink:href"),
}  # fmt: skip
_LINKS = {"stylesheet", "icon", "apple-touch-icon", "preload", "modulepreload", "manifest", "mask-icon"}
_URL = re.compile(
    r"url\(\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"')]+))\s*\)|@import\s+(?:\"([^\"]*)\"|'([^']*)')", re.I
)
_SET = re.compile(r"image-set\(([^;{}]*)", re.I)
_SAID = re.compile(r"type\([^)]*\)|\"([^\"]*)\"|'([^']*)'", re.I)
_FAR = re.compile(r"//|(?!file:)[a-z][a-z0-9+.-]*:", re.I)


@dataclass(frozen=True, slots=True)
class Companions:
    """Files of the page's folder: target path and content; `left` has one line per file that is not copied."""

    files: tuple[tuple[Path, bytes], ...] = ()
    left: tuple[str, ...] = ()


def companions(page: Page, folder: Path) -> Companions:
    """The files that a page and its style sheets refer to, with their paths in another folder.

    Addresses on other hosts are not changed. Missing files are ignored.
    """
    if page.base is None or folder.resolve() == page.base.resolve():
        return Companions()
    site = Site(page.base, page.root, links=page.root is not None)
    found: dict[Path, bytes] = {}
    left: dict[str, str] = {}
    tree = parse_tree(page.data.decode(page.codec, "replace"), False)
    waiting = [(PurePosixPath(), each) for each in dict.fromkeys(_named(tree))]
    for place, address in waiting:
        where, why = _place(site, page.base, place, address)
        if where is None:
            if why:
                left[address] = why
            continue
        if folder / where in found:
            continue
        try:
            content = site(
                str(place / address) if not address.startswith("/") and str(place) != "." else address
            )
        except PictureError as error:
            if error.code != "no_file":
                left[address] = str(error.args[0])
            continue
        if len(found) >= MOST_FILES or sum(map(len, found.values())) + len(content) > MOST_BYTES:
            left[address] = f"more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB"
            continue
        found[folder / where] = content
        if where.suffix.lower() == ".css":
            named = dict.fromkeys(_styled(content.decode("utf-8", "replace")))
            waiting += [(PurePosixPath(where).parent, each) for each in named]
    return Companions(tuple(sorted(found.items())), _told(left))


def beside(page: Page, target: Path) -> tuple[str, ...]:
    """A warning on the files that a page refers to, for a page that is written into another folder without them."""
    needed = companions(page, target.parent)
    names = [str(path.relative_to(target.parent)) for path, _ in needed.files]
    if not names:
        return needed.left
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    told = f"{target} is written without the files that it refers to ({', '.join(names[:3])}{more})"
    return (f"{told}; copy them, or give a folder to -o.", *needed.left)


def _told(left: dict[str, str]) -> tuple[str, ...]:
    lines = [f"{address[:80]!r} is not copied: {why}" for address, why in list(left.items())[:5]]
    return (*lines, f"{len(left) - 5} more files are not copied.") if len(left) > 5 else tuple(lines)


def _place(site: Site, base: Path, place: PurePosixPath, address: str) -> tuple[PurePosixPath | None, str]:
    """The path of a file below the new folder, or the reason why it is not copied."""
    if not address or address.startswith("#") or _FAR.match(address):
        return None, ""
    relative = address if address.startswith("/") or str(place) == "." else str(place / address)
    with suppress(PictureError):
        for steps in site.paths(relative):
            path = site.root.joinpath(*steps)
            if not path.is_file():
                continue
            try:
                where = PurePosixPath(path.relative_to(base.absolute()).as_posix())
            except ValueError:
                return None, "it is outside of the page's folder"
            if PurePosixPath(re.split("[?@#]", where.name)[0]).suffix.lower() not in SUFFIXES:
                return None, "files of this type are not copied"
            return where, ""
        return None, ""
    return None, "it is outside of the page's folder, or its path is absolute"


def _named(tree: Any) -> Iterator[str]:
    """Addresses of the files that a page shows or runs, resolved against its base."""
    base = base_of(tree)
    for each in tree.iter_elements():
        name = str(each.tag)
        raw = [str(each.attr(attribute) or "") for attribute in _ATTRIBUTES.get(name, ())]
        if name in ("img", "source"):
            raw += [address for held in LAZY_SETS for address, _ in candidates(str(each.attr(held) or ""))]
        if name == "link" and _LINKS & {word.lower() for word in str(each.attr("rel") or "").split()}:
            raw.append(str(each.attr("href") or ""))
            raw += [address for address, _ in candidates(str(each.attr("imagesrcset") or ""))]
        if name == "style":
            raw += _styled(each.text)
        if each.attr("style"):
            raw += _styled(str(each.attr("style")))
        yield from (join(base, address) for address in raw if address.strip())


def _styled(css: str) -> Iterator[str]:
    """Addresses in a style sheet."""
    css = css[: 4 << 20]
    sets = (said for found in _SET.finditer(css) for said in _SAID.finditer(found[1]))
    for found in (*_URL.finditer(css), *sets):
        address = next((group for group in found.groups() if group is not None), "")
        if address.strip():
            yield join("", address)
