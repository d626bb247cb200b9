"""Take atoms out of minimal HTML: only the elements around them are normalised again."""

from __future__ import annotations

from collections.abc import Sequence

from cm3kit_tokenizers.document import Markup, Piece
from cm3kit_tokenizers.html.minimal import settled
from cm3kit_tokenizers.html.nesting import INLINE
from cm3kit_tokenizers.html.outline import PIECES
from cm3kit_tokenizers.vocab import PLAIN

Span = tuple[int, int]
_BLOCKS = frozenset(PLAIN) - INLINE
# Elements that may stand anywhere: what is in them does not depend on what is around them.
_ROOMS = _BLOCKS - {"title", "tr", "td", "th"}
_OPENS = {f"<{name}>": name for name in _BLOCKS}
_CLOSES = frozenset(f"</{name}>" for name in _BLOCKS)
_PRE = PIECES["<pre>"]


def without(pieces: Sequence[Piece], cuts: Sequence[Span]) -> list[Piece]:
    """Normalised pieces without some ranges, normalised: equal to `settled` of all that is left.

    Args:
        pieces: as `minimal_pieces` gives them, without gaps.
        cuts: start and end of each whole `<img>` or `<meta>`, in order.
    """
    if any(piece is _PRE for piece in pieces):
        # Inside <pre>, white space stands; which of the elements are inside of one is not worth finding out.
        return settled(_left(pieces, (0, len(pieces)), cuts))
    done: list[tuple[Span, list[Piece]]] = []
    for cut in cuts:
        if done and cut[0] < done[-1][0][1]:
            continue
        room = _room(pieces, cut)
        while room is not None:
            rest = settled(_left(pieces, room, cuts))
            if rest and rest[0] is pieces[room[0]]:
                break
            # Nothing is left in it, so that it goes, and what is around it may go too.
            room = _room(pieces, room)
        if room is None:
            return settled(_left(pieces, (0, len(pieces)), cuts))
        while done and done[-1][0][0] >= room[0]:
            done.pop()
        done.append((room, rest))
    out: list[Piece] = []
    at = 0
    for (start, end), rest in done:
        out += pieces[at:start]
        out += rest
        at = end
    return out + list(pieces[at:])


def _left(pieces: Sequence[Piece], span: Span, cuts: Sequence[Span]) -> list[Piece]:
    """The pieces of a span without the cuts in it."""
    out: list[Piece] = []
    at = span[0]
    for start, end in cuts:
        if span[0] <= start < span[1]:
            out += pieces[at:start]
            at = end
    return out + list(pieces[at : span[1]])


def _room(pieces: Sequence[Piece], span: Span) -> Span | None:
    """The span of the innermost element of `_ROOMS` around a span; None if there is none."""
    depth, above, at = 0, 1, span[0]
    while True:
        at -= 1
        if at < 0:
            return None
        piece = pieces[at]
        if type(piece) is not Markup:
            continue
        if piece.piece in _CLOSES:
            depth += 1
        elif piece.piece in _OPENS:
            if depth:
                depth -= 1
            elif _OPENS[piece.piece] in _ROOMS:
                break
            else:
                above += 1
    start, at, depth = at, span[1] - 1, 0
    while above:
        at += 1
        piece = pieces[at]
        if type(piece) is not Markup:
            continue
        if piece.piece in _OPENS:
            depth += 1
        elif piece.piece in _CLOSES:
            depth, above = (depth - 1, above) if depth else (0, above - 1)
    return start, at + 1
