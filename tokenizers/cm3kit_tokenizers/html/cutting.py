"""Take atoms out of minimal HTML: only the elements around them are normalised again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from cm3kit_tokenizers.document import Markup, Piece
from cm3kit_tokenizers.html.minimal import settled
from cm3kit_tokenizers.html.nesting import INLINE
from cm3kit_tokenizers.html.outline import PIECES, SPACE
from cm3kit_tokenizers.vocab import PLAIN

Span = tuple[int, int]
_BLOCKS = frozenset(PLAIN) - INLINE
# Elements that may stand anywhere: what is in them does not depend on what is around them.
_ROOMS = _BLOCKS - {"title", "tr", "td", "th"}
_OPENS = {f"<{name}>": name for name in _BLOCKS}
_CLOSES = frozenset(f"</{name}>" for name in _BLOCKS)
_INLINE_OPENS = frozenset({*(f"<{name}>" for name in INLINE), "<a"})
_INLINE_CLOSES = frozenset(f"</{name}>" for name in INLINE)
_BREAK = PIECES["<br>"]
_PRE, _END_PRE = PIECES["<pre>"], PIECES["</pre>"]


def without(pieces: Sequence[Piece], cuts: Sequence[Span]) -> list[Piece]:
    """Normalised pieces without some ranges, normalised: equal to `settled` of all that is left.

    Args:
        pieces: as `minimal_pieces` gives them, without gaps.
        cuts: start and end of each whole `<img>` or `<meta>`, in order.
    """
    if _in_pre(pieces, cuts):
        # White space stands there, also in elements that are in it.
        return settled(_left(pieces, (0, len(pieces)), cuts))
    done: list[tuple[Span, list[Piece]]] = []
    for cut in cuts:
        if done and cut[0] < done[-1][0][1]:
            continue
        run, alone = _run(pieces, cut)
        rest = settled(_left(pieces, run, cuts)) if run else []
        if run and (alone or _stays(rest)):
            done.append((run, rest))
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


def _in_pre(pieces: Sequence[Piece], cuts: Sequence[Span]) -> bool:
    """Whether a cut is inside of `<pre>`."""
    at, size = 0, len(pieces)
    starts = [place for place, piece in enumerate(pieces) if piece is _PRE]
    for start in starts:
        if start >= at:
            at, depth = start + 1, 1
            while depth and at < size:
                depth += (pieces[at] is _PRE) - (pieces[at] is _END_PRE)
                at += 1
            place = bisect_left(cuts, (start, 0))
            if place < len(cuts) and cuts[place][0] < at:
                return True
    return False


def _left(pieces: Sequence[Piece], span: Span, cuts: Sequence[Span]) -> list[Piece]:
    """The pieces of a span without the cuts in it."""
    out: list[Piece] = []
    at = span[0]
    for start, end in cuts:
        if span[0] <= start < span[1]:
            out += pieces[at:start]
            at = end
    return out + list(pieces[at : span[1]])


def _run(pieces: Sequence[Piece], span: Span) -> tuple[Span | None, bool]:
    """The run of text around a span, up to the tags of blocks, and whether it is in no element.

    There is none where an inline element holds blocks. If something is left of a run, nothing else changes: its
    element stays, and white space is collapsed anew behind every tag of a block.
    """
    start, stop = span
    while start and not _is_block(pieces[start - 1]):
        start -= 1
    while stop < len(pieces) and not _is_block(pieces[stop]):
        stop += 1
    depth = 0
    for piece in pieces[start:stop]:
        if type(piece) is Markup:
            depth += (piece.piece in _INLINE_OPENS) - (piece.piece in _INLINE_CLOSES)
            if depth < 0:
                return None, False
    return (None, False) if depth else ((start, stop), _room(pieces, span, _BLOCKS) is None)


def _stays(rest: Sequence[Piece]) -> bool:
    """Whether an element with this in it is kept: line breaks and white space do not keep it."""
    return any(each is not _BREAK and (type(each) is not str or each.strip(SPACE) != "") for each in rest)


def _is_block(piece: Piece) -> bool:
    return type(piece) is Markup and (piece.piece in _OPENS or piece.piece in _CLOSES)


def _room(pieces: Sequence[Piece], span: Span, rooms: frozenset[str] = _ROOMS) -> Span | None:
    """The span of the innermost element of `rooms` around a span; None if there is none."""
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
            elif _OPENS[piece.piece] in rooms:
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
