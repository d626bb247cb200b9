"""CM3's minimal HTML as a flat list of nodes, and back to text (arXiv:2201.07520, sec. 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cm3kit_tokenizers.document import Gap, Image, Markup, Node, Picture, Piece, Text
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.html.escape import ATTRIBUTE_ESCAPES, IN_ATTRIBUTE, IN_TEXT, TEXT_ESCAPES
from cm3kit_tokenizers.html.gaps import PageGap
from cm3kit_tokenizers.html.outline import (
    ATOM,
    BREAK,
    META,
    OPEN_INLINE,
    OPEN_PRE,
    OPENS,
    Event,
    Frame,
    Outline,
    collapse,
)
from cm3kit_tokenizers.html.walk import Walk
from cm3kit_tokenizers.vocab import MARKUP, VOID

# A lone surrogate, which cannot occur in the text of a page.
_BETWEEN = "\ud802"


def keep_all(src: str) -> bool:
    """Keep every picture's address."""
    return True


def minimal_nodes(tree: Any, gaps: Sequence[PageGap], usable: Callable[[str], bool]) -> list[Node]:
    """Minimal HTML of a tree with gaps written as `mark(index)`. See `minimal_pieces`."""
    found = minimal_pieces(tree, gaps, usable)
    return [Text(piece) if isinstance(piece, str) else piece for piece in found]


def minimal_pieces(tree: Any, gaps: Sequence[PageGap], usable: Callable[[str], bool]) -> list[Piece]:
    """Minimal HTML of a tree with gaps written as `mark(index)`, texts as plain strings.

    The tree is modified: elements are removed, and captions of tables are moved.

    Raises:
        PageError: gap_place for a gap in an element or attribute that minimal HTML drops.
    """
    pieces = _written(Walk(gaps, usable).events(tree))
    if gaps:
        _all_there(pieces, gaps)
    return pieces


def settled(pieces: Sequence[Piece]) -> list[Piece]:
    """Normalise pieces of minimal HTML after some were removed.

    Elements that have become empty are removed. Equivalent to rendering, parsing and minimising, in half the time.
    """
    outline = Outline(with_gaps=False)
    frames: list[Frame | None] = []
    at = 0
    while at < len(pieces):
        piece, start = pieces[at], at
        at += 1
        if isinstance(piece, str):
            outline.text(piece)
        elif isinstance(piece, Markup):
            kind, name = _PIECES[piece.piece]
            if kind == "begin":
                at = _end_of(pieces, at)
            if kind == "close":
                if (frame := frames.pop()) is not None:
                    outline.close(frame)
            elif name == "br":
                outline.atom(BREAK, (piece,))
            elif name in VOID:
                outline.atom(META if name == "meta" else ATOM, tuple(pieces[start:at]))
            else:
                event = OPENS[name] if kind == "open" else (OPEN_INLINE, tuple(pieces[start:at]))
                frames.append(outline.open(name, event))
    return _written(outline.finish())


def _end_of(pieces: Sequence[Piece], at: int) -> int:
    """The index after the start tag that contains `at`."""
    while True:
        piece = pieces[at]
        at += 1
        if type(piece) is Markup and piece.piece == ">":
            return at


def _all_there(pieces: Iterable[Piece], gaps: Sequence[PageGap]) -> None:
    found = {piece.index for piece in pieces if isinstance(piece, Gap)}
    found |= {piece.gap for piece in pieces if isinstance(piece, Picture) and piece.gap is not None}
    for gap in gaps:
        if gap.index not in found:
            place = f"attribute {gap.attribute!r} of <{gap.element}>" if gap.attribute else f"<{gap.element}>"
            raise PageError(
                f"Line {gap.line}: a gap in the {place} cannot be filled by a model: minimal HTML drops it."
                " Fill text, or alt, src, title, href or a meta's content.",
                code="gap_place",
            )


def _written(events: Sequence[Event | str]) -> list[Piece]:
    """Events as pieces, with white space collapsed as in browsers."""
    collapsed = iter(_collapsed([event for event in events if type(event) is str]))
    pieces: list[Piece] = []
    run: list[str] = []
    pre, pending, fresh = 0, False, True
    for event in events:
        if isinstance(event, str):
            text = next(collapsed)
            if pre:
                run.append(event)
                continue
            if text == " ":
                pending = pending or not fresh
                continue
            core = text.strip(" ")
            pending = pending or (not fresh and text[:1] == " ")
            if core:
                run.append(" " + core if pending else core)
                fresh, pending = False, text[-1] == " "
            continue
        kind, found = event
        if kind <= ATOM:
            if pending:
                run.append(" ")
                fresh, pending = True, False
            fresh = fresh and kind != ATOM
        elif kind >= BREAK:
            pending, fresh = False, True
            if kind >= OPEN_PRE:
                pre += 1 if kind == OPEN_PRE else -1
        if run:
            pieces.append("".join(run))
            run.clear()
        pieces += found
    if run:
        pieces.append("".join(run))
    return pieces


def _collapsed(texts: list[str]) -> list[str]:
    """Texts with white space collapsed; processed together, since most are short."""
    found = collapse(_BETWEEN.join(texts)).split(_BETWEEN) if texts else []
    return found if len(found) == len(texts) else [collapse(text) for text in texts]


def render(nodes: Iterable[Piece], image_src: Callable[[Image], str] | None = None) -> str:
    """Nodes as HTML, every text escaped for its context; a gap is written `<mask>`.

    Args:
        nodes: balanced minimal HTML.
        image_src: returns the address of an encoded picture.

    Raises:
        ValueError: for unbalanced or unknown markup, or an `Image` without `image_src`.
    """
    out: list[str] = []
    opened: list[str] = []
    tag, allowed, last = "", _BETWEEN_TAGS, ""
    write, push = out.append, opened.append
    in_text, in_attribute = IN_TEXT.search, IN_ATTRIBUTE.search
    for node in nodes:
        kind_of_node = type(node)
        if kind_of_node is Markup:
            last = node.piece  # type: ignore[union-attr]
            kind, name = _PIECES.get(last, _UNKNOWN)
            if kind not in allowed:
                raise ValueError(f"{last!r} cannot stand here")
            if kind == "open":
                push(name)
            elif kind == "close":
                if not opened or opened.pop() != name:
                    raise ValueError(f"{last!r} closes an element that is not open")
            elif kind == "begin":
                tag, allowed = name, _IN_TAG
            elif kind == "end":
                if tag not in VOID:
                    push(tag)
                tag, allowed = "", _BETWEEN_TAGS
            elif kind != "void":
                allowed = _UNQUOTES if kind == "attribute" else _IN_TAG
            write(last)
        elif kind_of_node is Gap:
            last = ""
            write("<mask>")
        else:
            text = node if kind_of_node is str else _plain(node, image_src)  # type: ignore[arg-type]
            assert isinstance(text, str)
            if allowed is _UNQUOTES:
                write(text.translate(ATTRIBUTE_ESCAPES) if in_attribute(text) else text)
            else:
                if last == "<pre>" and text[:1] == "\n":
                    write("\n")
                write(text.translate(TEXT_ESCAPES) if in_text(text) else text)
            last = ""
    if opened or allowed is not _BETWEEN_TAGS:
        raise ValueError(f"markup is not closed: {opened}")
    return "".join(out)


def _plain(node: Text | Image | Picture | Markup, image_src: Callable[[Image], str] | None) -> str:
    if isinstance(node, Text):
        return node.content
    if isinstance(node, Picture):
        return node.src
    if not isinstance(node, Image) or image_src is None:
        raise ValueError("nodes hold an Image; give image_src")
    return image_src(node)


def _kind(piece: str) -> str:
    if piece in ('"', ">"):
        return "unquote" if piece == '"' else "end"
    if piece.startswith(" "):
        return "attribute"
    if piece.startswith("</"):
        return "close"
    if not piece.endswith(">"):
        return "begin"
    return "void" if piece[1:-1] in VOID else "open"


_PIECES = {piece: (_kind(piece), piece.strip("</>")) for piece in MARKUP}
_UNKNOWN = ("", "")
# Which kinds of markup may stand between tags, in a tag, and in an attribute's value.
_BETWEEN_TAGS: tuple[str, ...] = ("open", "close", "begin", "void")
_IN_TAG: tuple[str, ...] = ("attribute", "end")
_UNQUOTES: tuple[str, ...] = ("unquote",)
