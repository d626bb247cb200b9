"""Read minimal HTML from `render` without a parser, since its tags and references have only one form."""

from __future__ import annotations

import re

from cm3kit_tokenizers.document import Picture, Piece
from cm3kit_tokenizers.html.outline import PIECES

# No tag that `render` writes has a `>` in an attribute value.
_TAG = re.compile("(<[^>]*>)")
_WITH_VALUES = re.compile(r'<(a|img|meta)((?: [a-z]+="[^"]*")+)>')
_VALUE = re.compile(r' ([a-z]+)="([^"]*)"')
_REFERENCE = re.compile("&(?:(amp|lt|gt|quot)|#(13|65279|39));|&")
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"'}


def scan(html: str) -> list[Piece] | None:
    """The pieces of minimal HTML rendered from balanced pieces; None for HTML that `render` does not write."""
    try:
        return _scanned(html)
    except (KeyError, ValueError):
        return None


def _scanned(html: str) -> list[Piece]:
    known: dict[str, list[Piece]] = {}
    pieces: list[Piece] = []
    parts = _TAG.split(html)
    if "\r" in html or "\0" in html or "\ufeff" in html:
        raise ValueError("not written by render")
    pre = False
    for at in range(0, len(parts), 2):
        if text := parts[at]:
            if pre and text[0] == "\n":
                # `render` doubles a line break after <pre>, as a parser drops the first.
                text = text[1:]
                if text[:1] != "\n":
                    raise ValueError("not written by render")
            pieces.append(_text(text) if "&" in text or "<" in text or ">" in text else text)
        if at + 1 < len(parts):
            tag = parts[at + 1]
            if (found := known.get(tag)) is None:
                found = known[tag] = _tag(tag)
            pieces += found
            pre = tag == "<pre>"
    return pieces


def _tag(tag: str) -> list[Piece]:
    if (piece := PIECES.get(tag)) is not None:
        return [piece]
    whole = _WITH_VALUES.fullmatch(tag)
    if whole is None:
        raise ValueError(tag)
    pieces: list[Piece] = [PIECES["<" + whole[1]]]
    for name, written in _VALUE.findall(whole[2]):
        value = _text(written)
        pieces += (PIECES[f' {name}="'], Picture(value) if name == "src" else value, PIECES['"'])
    return [*pieces, PIECES[">"]]


def _text(written: str) -> str:
    if "<" in written or ">" in written:
        raise ValueError(written)
    return _REFERENCE.sub(_character, written)


def _character(found: re.Match[str]) -> str:
    # Other references are not in the table.
    return chr(int(found[2])) if found[2] else _NAMED[found[1]]
