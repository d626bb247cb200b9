"""From the bytes of a page to a record: minimal HTML, pictures by content hash, and reasons for drops."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cm3kit.data.prepared import read_pieces as read_pieces
from cm3kit.web import tree as trees
from cm3kit.web.language import language_of, readable
from cm3kit.web.picture import Stored, store
from cm3kit.web.reasons import Refused
from cm3kit.web.settings import PageRules, WebSettings
from cm3kit_tokenizers.document import Markup, Node, Picture, Piece
from cm3kit_tokenizers.errors import PageError, PictureError, stops
from cm3kit_tokenizers.html.cutting import without
from cm3kit_tokenizers.html.encoding import ERRORS, codec_of, refuse_wide
from cm3kit_tokenizers.html.minimal import keep_all, minimal_nodes, minimal_pieces, render, settled
from cm3kit_tokenizers.html.nesting import INLINE
from cm3kit_tokenizers.html.spans import parse_tree

ADDRESS = "cm3://sha256/"
Find = Callable[[str], bytes]
"""Returns the bytes of the picture at an address; PictureError or Refused if there is none."""

_DEFAULT = WebSettings()
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd]")
_CONTROLS = bytes({*range(9), 0x0B, *range(0x0E, 0x20), *range(0x7F, 0xA0)})
_WIDE = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_LISTS = frozenset({"ul", "ol", "li", "dl", "dt", "dd", "table", "tr", "th", "td"})
_EXEMPT = frozenset({"title", "h1", "h2", "h3", "h4", "h5", "h6", "figcaption"})


@dataclass(frozen=True, slots=True)
class Record:
    """A page in its training form.

    `html` is minimal HTML in which pictures have the addresses `cm3://sha256/…` of `pictures`; `dropped` lists
    (address, reason) of dropped pictures. `meta` is JSON.
    """

    key: str
    url: str
    html: str
    pictures: tuple[Stored, ...]
    dropped: tuple[tuple[str, str], ...]
    chars: int
    lang: str = ""
    license: str = ""
    robots: str = ""
    tdm: str = ""
    tdm_policy: str = ""
    fetched_at: str = ""
    source: str = ""
    meta: str = "{}"

    @property
    def sha256(self) -> str:
        """Hash of the minimal HTML: equal for equal pages, pictures included."""
        return hashlib.sha256(self.html.encode()).hexdigest()

    def nodes(self) -> list[Node]:
        """The page as nodes of minimal HTML."""
        return read_nodes(self.html)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A dropped page, with a code of `reasons.REASONS`."""

    key: str
    reason: str
    detail: str = ""


def read_nodes(html: str) -> list[Node]:
    """Nodes of minimal HTML."""
    return minimal_nodes(parse_tree(html, False), (), keep_all)


@dataclass(frozen=True, slots=True)
class About:
    """Origin of a page: HTTP `headers`, and the source's metadata as JSON values in `meta`."""

    url: str = ""
    source: str = ""
    fetched_at: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""


def html_to_record(
    data: bytes, find: Find, settings: WebSettings | None = None, *, key: str = "", about: About | None = None
) -> Record | Dropped:
    """Convert a page to a record, or drop it with a reason. A pure function of its arguments.

    Args:
        data: the bytes of the page; untrusted.
        find: returns the bytes of a picture by its address.
        key: the page's name in its corpus.
    """
    settings, about = settings or _DEFAULT, about or About()
    try:
        return _record(data, find, settings, key, about)
    except PageError as error:
        return Dropped(key, error.code, str(error.args[0]))
    except Refused as refused:
        return Dropped(key, refused.reason, refused.detail)
    except MemoryError:
        return Dropped(key, "no_memory")
    except BaseException as error:
        if stops(error):
            raise
        return Dropped(key, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")


def _record(data: bytes, find: Find, settings: WebSettings, key: str, about: About) -> Record:
    rules = settings.page
    tree = parse_tree(decode(data, rules, about.headers), False)
    said = trees.rights(tree, about.headers)
    said["license"] = about.license or said["license"]
    if rules.opt_out == "drop" and trees.opted_out(said):
        raise Refused("opted_out", said["robots"] or said["tdm_policy"])
    language = re.split("[-_]", said["lang"].strip().lower())[0] if rules.detect != "always" else ""
    if rules.languages and language and language not in rules.languages:
        raise Refused("language", said["lang"][:35])
    trees.edit(tree, rules)
    addresses = trees.pictures(tree, settings.pictures, about.url)
    nodes = thin(minimal_pieces(tree, (), keep_all), rules)
    chars = sum([len(piece) for piece in nodes if type(piece) is str])
    _judge(nodes, chars, rules)
    if not language and rules.detect != "never":
        _by_text(nodes, rules, said)
    nodes, kept, dropped = _with_pictures(nodes, addresses, find, settings, "noimageai" in said["robots"])
    if not kept and (rules.need_picture or chars < rules.min_chars):
        raise Refused("no_picture" if rules.need_picture else "too_short", f"{chars} characters")
    meta = json.dumps(about.meta, ensure_ascii=False, default=str)
    html = render(nodes)
    return Record(
        key, about.url, html, kept, dropped, chars, fetched_at=about.fetched_at, source=about.source,
        meta=meta, **said,
    )  # fmt: skip


def _by_text(nodes: Sequence[Piece], rules: PageRules, said: dict[str, str]) -> None:
    """Refuse a page whose text is in another language; set the detected one where none is declared."""
    found = language_of(readable(nodes))
    if rules.languages and found and found not in rules.languages:
        raise Refused("language", f"{found}, by its text")
    said["lang"] = said["lang"] or found


def decode(data: bytes, rules: PageRules, headers: Mapping[str, str]) -> str:
    """Decode a page with the codec of `codec_of`; UTF-16 is also read if it has a byte-order mark.

    Raises:
        PageError: empty_file, page_too_large, not_html.
        Refused: bad_encoding.
    """
    if not data:
        raise Refused("empty_file")
    if len(data) > rules.max_bytes:
        raise Refused("page_too_large", f"{len(data):,} bytes; the limit is {rules.max_bytes:,}")
    codec = next((codec for mark, codec in _WIDE.items() if data.startswith(mark)), None)
    if codec is None:
        refuse_wide(data)
        codec = codec_of(
            data, next((value for name, value in headers.items() if name.lower() == "content-type"), "")
        )
    text = data.decode(codec, ERRORS).removeprefix("\ufeff")
    # In a single-byte encoding all bytes decode; binary data then shows as control characters.
    if codec == "utf-8" or ("\ufffd" not in text and len(data.translate(None, _CONTROLS)) == len(data)):
        broken = text.count("\ufffd")
    else:
        broken = len(_NO_TEXT.findall(text))
    if broken and broken > rules.max_broken * len(text):
        raise Refused("bad_encoding", f"{broken} of {len(text)} characters are not {codec}")
    return text


def _judge(nodes: Sequence[Piece], chars: int, rules: PageRules) -> None:
    """Refuse a page with too little text or too low a share of it, before any picture is opened."""
    pictures = sum([type(node) is Picture for node in nodes])
    if chars < rules.min_chars and not pictures:
        raise Refused("too_short", f"{chars} characters")
    if rules.need_picture and not pictures:
        raise Refused("no_picture")
    size = chars
    if rules.min_ratio:
        size += sum(len(node.piece) for node in nodes if isinstance(node, Markup))
    if chars < rules.min_ratio * size:
        raise Refused("low_ratio", f"{chars / size:.2f} of {size} characters are text")


def thin(nodes: Sequence[Piece], rules: PageRules) -> list[Piece]:
    """Remove blocks without a text of `min_text` characters; pictures, titles and headings stay."""
    if not rules.min_text and not rules.min_text_list:
        return list(nodes)
    out: list[Piece] = []
    # Per open block: name, start, longest text in it, own text, whether it stays.
    blocks: list[tuple[str, int, int, int, bool]] = [("", 0, 0, 0, True)]
    quoted = False
    for node in nodes:
        piece = node.piece if isinstance(node, Markup) else ""
        name = piece.strip("</>")
        if piece.startswith("<") and piece.endswith(">") and name not in (*INLINE, "br"):
            if not piece.startswith("</"):
                blocks.append((name, len(out), 0, 0, name in _EXEMPT))
            else:
                out.append(node)
                _close(blocks, out, rules)
                continue
        elif piece in ('"', ">"):
            quoted = False
        elif piece.startswith(" "):
            quoted = True
        elif not quoted and isinstance(node, str):
            name, start, best, own, stays = blocks[-1]
            blocks[-1] = (name, start, best, own + len(node), stays)
        elif isinstance(node, Picture):
            blocks[-1] = (*blocks[-1][:4], True)
        out.append(node)
    return settled(out)


def _close(blocks: list[tuple[str, int, int, int, bool]], out: list[Piece], rules: PageRules) -> None:
    name, start, best, own, stays = blocks.pop()
    best = max(best, own)
    if not stays and best < (rules.min_text_list if name in _LISTS else rules.min_text):
        del out[start:]
        return
    above, place, most, text, kept = blocks[-1]
    # A heading stays, but does not make the block around it stay.
    blocks[-1] = (above, place, max(most, best), text, kept or (stays and name not in _EXEMPT))


def _with_pictures(
    nodes: Sequence[Piece],
    addresses: Sequence[tuple[str, ...]],
    find: Find,
    settings: WebSettings,
    noimages: bool,
) -> tuple[list[Piece], tuple[Stored, ...], tuple[tuple[str, str], ...]]:
    """Nodes with the addresses of stored pictures; unavailable ones lose their `src` or are removed."""
    if not any([type(node) is Picture for node in nodes]):
        return list(nodes), (), ()
    out: list[Piece] = []
    kept: list[Stored] = []
    dropped: list[tuple[str, str]] = []
    gone: set[int] = set()
    for node in nodes:
        if isinstance(node, Picture):
            tried = addresses[int(node.src.removeprefix("cm3://"))]
            try:
                if noimages and settings.page.opt_out == "drop":
                    raise Refused("opted_out")
                if len(kept) >= settings.pictures.most:
                    raise Refused("too_many")
                kept.append(_first(tried, find, settings))
                node = Picture(ADDRESS + kept[-1].sha256)
            except Refused as refused:
                dropped.append((tried[0][:500] if tried else "", refused.reason))
                gone.add(len(out))
        out.append(node)
    if gone:
        out = _without(out, gone, _whole(out, gone) if settings.pictures.missing == "alt" else gone)
    return out, tuple(kept), tuple(dropped)


def _first(addresses: Sequence[str], find: Find, settings: WebSettings) -> Stored:
    """The picture of the first address that has one; Refused with the most specific reason otherwise."""
    # Not the errors themselves: their tracebacks keep the page alive until garbage collection.
    failures: list[tuple[str, str]] = []
    for address in addresses:
        try:
            return store(find(address), address, settings.pictures)
        except Refused as refused:
            failures.append((refused.reason, refused.detail))
        except PictureError as error:
            failures.append(_explained(address, error))
    far = ("remote", "no_file", "outside")
    raise Refused(*min(failures, key=lambda each: each[0] in far, default=("no_address", "")))


def _explained(address: str, error: PictureError) -> tuple[str, str]:
    if error.code != "picture_outside":
        return ("no_file" if error.code == "no_file" else "bad_picture"), str(error.args[0])
    remote = re.match(r"(?:[a-z][a-z0-9+.-]*:)?//|[a-z][a-z0-9+.-]*:", address, re.I)
    return ("remote" if remote and not address.lower().startswith("file:") else "outside"), ""


def _whole(nodes: Sequence[Piece], gone: set[int]) -> set[int]:
    """The pictures of `gone` that have no attribute but `src`."""
    return {place for place in gone if _is(nodes[place - 2], "<img") and _is(nodes[place + 2], ">")}


def _is(node: Piece, piece: str) -> bool:
    return type(node) is Markup and node.piece == piece


def _without(nodes: Sequence[Piece], gone: set[int], whole: set[int]) -> list[Piece]:
    """Nodes without the `src` at each position of `gone`, or without the `<img>` if it is in `whole`."""
    sources = sorted({place + step for place in gone - whole for step in (-1, 0, 1)})
    cuts = []
    for place in sorted(whole):
        first, last = place - 1, place + 1
        while not _is(nodes[first], "<img"):
            first -= 1
        while not _is(nodes[last], ">"):
            last += 1
        before = bisect_left(sources, first)
        cuts.append((first - before, last + 1 - before))
    cut = set(sources)
    left = [node for place, node in enumerate(nodes) if place not in cut] if cut else nodes
    # Elements around a removed picture may now be empty too.
    return without(left, cuts) if cuts else list(left)
