"""Copies of pages for display inside another page: nothing loads, new content is marked, byte offsets are noted.

Generated and opened pages are untrusted. They are shown in frames whose sandbox runs no script and whose policy
loads nothing but pictures embedded in the page; the copy also removes what a policy does not cover (preconnections,
base addresses).
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3kit_tokenizers.errors import Cm3kitError, PictureError
from cm3kit_tokenizers.html.addresses import addresses_of, base_of
from cm3kit_tokenizers.html.covers import hiding
from cm3kit_tokenizers.html.encoding import codec_of
from cm3kit_tokenizers.html.select import readable
from cm3kit_tokenizers.html.spans import RAW_TEXT, Element, elements, parse_tree, runs, view
from cm3kit_tokenizers.site import Site

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NEW = "cm3kit-new"
STYLE = (
    f"<style>{NEW}{{background:#ffe08a;color:#1d1d1f;border-radius:3px;box-shadow:0 0 0 2px #ffe08a}}"
    f"[data-{NEW}]{{outline:3px solid #e07b00;outline-offset:1px}}</style>"
)
# Gaps that are still open: a chip in the text, with what it may say; a dashed square for a picture; for an attribute a
# chip with its name, in the element or behind it.
OPEN = "cm3kit-gap"
_CHIP = "background:#cfe4ff;color:#16395f;border-radius:3px;padding:0 .5em;font:.85em sans-serif"
GAPS = (
    f"<style>mask::before{{content:'gap';{_CHIP}}}{OPEN}::before{{content:attr(data-of) ' gap';{_CHIP};margin:0 .3em}}"
    + "".join(
        f"mask[{name}]::before{{content:'gap: ' attr({name})}}" for name in ("choices", "regex", "trie")
    )
    + f"[data-{OPEN}]{{pointer-events:none}}</style>"
)
_SQUARE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="96" height="96"><rect x="1.5" y="1.5" width="93" height="93" rx="6"'
    ' fill="#cfe4ff" stroke="#3b82c4" stroke-width="3" stroke-dasharray="9 6"/><text x="48" y="54" font-size="18"'
    ' font-family="sans-serif" text-anchor="middle" fill="#16395f">gap</text></svg>'
)
# Elements in which the parser would move an inserted element, or read it as text.
CLOSED = {"title", "textarea", "option", "select", "table", "tbody", "thead", "tfoot", "tr", "colgroup"}
# Those, and elements in which nothing is shown.
UNSEEN = CLOSED | {*RAW_TEXT, "html", "head", "body", "meta", "link", "base", "template"}
_ACTIVE = re.compile(r"<(link|base|meta)(?=[\s/>])", re.I)
_FRAMES = re.compile(r"<(iframe|frame|embed|object)(?=[\s/>])", re.I)
_KINDS = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


@dataclass(frozen=True, slots=True)
class Mark:
    """A byte range with new content: `content`, `attribute` or `image`."""

    start: int
    stop: int
    kind: str


def marks_of(source: Mapping[str, Any]) -> list[Mark]:
    """The new content of a filled page, by the `source` of its recipe; ranges that cannot be shown are skipped."""
    pairs = zip(source.get("spans") or (), source.get("gaps") or (), strict=False)
    return [
        Mark(int(start), int(stop), str(gap["kind"]))
        for (start, stop), gap in pairs
        if not (gap["kind"] == "content" and CLOSED & set(gap.get("inside") or ())) and stop > start
    ]


def display(
    data: bytes, base: Path | None = None, marks: Sequence[Mark] = (), *, places: bool = False
) -> str:
    """The page for the `srcdoc` of a sandboxed frame.

    Args:
        base: the folder of the page's pictures; they are embedded in the copy.
        marks: new content.
        places: insert before each text and each picture a comment with its byte offset.
    """
    try:
        text = view(data)
        tree = parse_tree(text)
        codec = codec_of(data)
    except Cm3kitError:
        return _still(data.decode("utf-8", "replace"), "")
    edits = [*_gaps(text, tree), *_pictures(text, tree, base, codec), *_marks(text, marks)]
    edits += _places(text, tree) if places else []
    parts: list[bytes] = []
    at = 0
    for start, stop, new in sorted(edits, key=lambda each: each[:2]):
        if start >= at:
            parts += [data[at:start], new.encode(codec, "replace")]
            at = stop
    copy = b"".join((*parts, data[at:])).decode(codec, "replace").removeprefix("\ufeff")
    return _still(copy, (STYLE if marks else "") + (GAPS if "<mask" in copy.lower() else ""))


def frame(copy: str, title: str) -> str:
    """A sandboxed frame with a `display` of a page."""
    return (
        f'<iframe sandbox="" title="{html.escape(title, quote=True)}"'
        f' srcdoc="{html.escape(copy, quote=True)}"></iframe>'
    )


def data_address(content: bytes) -> str:
    """A picture as a `data:` URL."""
    kind = next((name for start, name in _KINDS.items() if content.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


Edit = tuple[int, int, str]


def _still(page: str, style: str) -> str:
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    policy += '<meta http-equiv="x-dns-prefetch-control" content="off">'
    # A meta element without name and http-equiv has no effect, and is valid where the replaced elements are.
    page = _ACTIVE.sub(r"<meta data-was-\1 ", page)
    # A browser may connect to a frame's host before the policy forbids the frame. Of two attributes the first counts.
    page = _FRAMES.sub(r"<\1 src=about:blank data=about:blank srcdoc ", page)
    page = re.sub(r"http-equiv(?=[\s=/>])", "data-http-equiv", page, flags=re.I)
    return policy + style + page


def _pictures(text: str, tree: Any, base: Path | None, codec: str) -> Iterator[Edit]:
    """Edits that embed pictures of the page's folder and remove attributes that would hide them."""
    site, joined = Site(base) if base is not None else None, base_of(tree)
    for each in elements(text, tree) if site is not None else ():
        src = each.attributes.get("src")
        if not (each.html and each.name == "img" and src and src.value):
            continue
        hidden = list(hiding(text, each))
        if not hidden and text[slice(*src.value)].strip().lower().startswith("data:"):
            continue
        for address in addresses_of(each.handle, joined):
            try:
                content = site(readable(address, codec)) if site is not None else b""
            except PictureError:
                continue
            yield (*src.value, data_address(content))
            yield from ((*attribute.span, "") for _, attribute in hidden)
            break


def _gaps(text: str, tree: Any) -> Iterator[Edit]:
    """Edits that make open gaps of pictures and attributes visible; those of words are seen as elements."""
    for each in elements(text, tree):
        gaps = [
            (name, attribute)
            for name, attribute in each.attributes.items()
            if attribute.value and "<mask" in text[slice(*attribute.value)].lower()
        ]
        named = [name for name, _ in gaps if not (each.name == "img" and name == "src")]
        for name, attribute in gaps if each.html else ():
            if name not in named and attribute.value:
                square = base64.b64encode(_SQUARE.encode()).decode()
                yield (*attribute.value, f"data:image/svg+xml;base64,{square}")
                yield attribute.span[0], attribute.span[0], f'data-{OPEN}="" '
        if named and each.html and each.name not in UNSEEN:
            of = html.escape(" ".join(named), quote=True)
            yield each.start[1], each.start[1], f'<{OPEN} data-of="{of}"></{OPEN}>'


def _marks(text: str, marks: Sequence[Mark]) -> Iterator[Edit]:
    for each in marks:
        if each.kind == "content":
            yield each.start, each.start, f"<{NEW}>"
            yield each.stop, each.stop, f"</{NEW}>"
        elif text[each.stop - 1 : each.stop] in ('"', "'") or text[each.stop : each.stop + 1] in ('"', "'"):
            after = each.stop + (text[each.stop : each.stop + 1] in ('"', "'"))
            yield after, after, f' data-{NEW}=""'


def _places(text: str, tree: Any) -> Iterator[Edit]:
    hidden = [
        (each.start[1], each.end[0] if each.end else len(text))
        for each in elements(text, tree)
        if _hidden(each)
    ]
    for each in elements(text, tree):
        if each.html and each.name == "img":
            yield each.start[0], each.start[0], f"<!--cm3kit:i{each.start[0]}-->"
    for run in runs(text, tree):
        if run.kind == "text" and text[run.start : run.end].strip():
            if not any(start <= run.start < stop for start, stop in hidden):
                yield run.start, run.start, f"<!--cm3kit:t{run.start}-->"


def _hidden(each: Element) -> bool:
    """Whether a comment inside would be text, or its text is not shown on the page."""
    return not each.html or each.name in (*RAW_TEXT, "title", "template", "option", "head")
