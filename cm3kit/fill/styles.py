"""How a page is put to a model that has never seen minimal HTML: spelt in the model's own text tokens.

A page stays what it is everywhere else: ids of text and markup, with masked positions in it. Only the model reads
another row, and its logits at the masked positions are those of the page's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from cm3kit.config import Settings
from cm3kit.decode_options import PromptStyle as PromptStyle
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import MARKUP, Vocab

ASK = "Write this web page, and fill in what is missing in it."
TURN_START, TURN_END = 5, 6  # reserved specials of public causal models, as <|im_start|> and <|im_end|>
# Elements that stand within a line of words.
INLINE = ("em", "strong", "code", "a")


class ChatTemplate(Settings):
    """A conversation of one turn: the user's words stand between `before` and `after`; a number is an id of ours.

    `end` is the id that ends the answer of a causal model.
    """

    before: tuple[str | int, ...] = ()
    after: tuple[str | int, ...] = ()
    end: int = TURN_END

    def ids(self, words: list[int], text: TextTokenizer, vocab: Vocab) -> list[int]:
        """Ids of the conversation up to the answer; what stands between two special ids is one text, as theirs is."""
        out: list[int] = []
        given = [*_ids(self.before, text, vocab), *words, *_ids(self.after, text, vocab)]
        for inside, run in groupby(given, key=lambda id: id in vocab.text):
            ids = [*run]
            out += _as_one(ids, text, vocab) if inside else ids
        return out


class PictureMarks(Settings):
    """How a causal model of others writes pictures among words: ids of ours, and `start` those that begin every row."""

    begin: int
    end: int
    start: tuple[int, ...] = ()

    def mark(self, ids: Sequence[int], vocab: Vocab, length: int) -> list[int]:
        """Ids with these around every picture; one that is not whole at the end stays open.

        Args:
            length: codes of a whole picture.
        """
        out: list[int] = []
        for inside, run in groupby(ids, key=lambda id: id in vocab.image):
            codes = [*run]
            out += [self.begin, *codes] if inside else codes
            out += [self.end] if inside and len(codes) == length else []
        return out


@dataclass(frozen=True)
class Spelling:
    """What a model reads instead of a page's ids.

    Attributes:
        pieces: ids that stand for an id of markup; others stand for themselves.
        opening: ids before the page.
        breaks: ids of a line break, which does not follow another.
        vocab: the id space.
    """

    pieces: Mapping[int, tuple[int, ...]]
    vocab: Vocab
    opening: tuple[int, ...] = ()
    breaks: tuple[int, ...] = field(default=())

    def spell(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """The row that the model reads, and where each id of the page begins in it.

        `<eod>` begins a row, unless something else does, and ends a page as `<eoss>`, the end that public models know.
        """
        row, places = list(self.opening), []
        for place, id in enumerate(ids):
            piece = self.pieces.get(id, (id,))
            if id == self.vocab.eod:
                piece = (self.vocab.eoss,) if place else (() if self.opening else (id,))
            if self.breaks and piece == self.breaks and (not row or tuple(row[-len(piece) :]) == piece):
                piece = ()
            places.append(len(row))
            row += piece
        return row, places


def spelling(
    style: PromptStyle, text: TextTokenizer, vocab: Vocab, chat: ChatTemplate | None
) -> Spelling | None:
    """How a style spells pages; None where they are read as they are."""
    if style == "minimal":
        return None
    breaks: tuple[int, ...] = ()
    if style == "plain":
        breaks = tuple(_ids(("\n",), text, vocab))
        pieces = {vocab.markup_id(piece): () if _within(piece) else breaks for piece in MARKUP}
    else:
        pieces = {vocab.markup_id(piece): tuple(_ids((piece,), text, vocab)) for piece in MARKUP}
    opening: tuple[int, ...] = ()
    if style == "chat" and chat is not None:
        opening = tuple(chat.ids(_ids((ASK,), text, vocab), text, vocab))
    return Spelling(pieces, vocab, opening, breaks)


def _within(piece: str) -> bool:
    """Whether a piece of markup leaves a line of words whole."""
    return piece.strip("</>") in INLINE or piece in ('"', ">", "<a", "<meta") or piece.endswith('="')


def _as_one(ids: list[int], text: TextTokenizer, vocab: Vocab) -> list[int]:
    """The tokens of all these tokens' text; the same ones where it is none, as half a character."""
    said = b"".join(text.pieces[id - vocab.text.start] for id in ids)
    try:
        return text.encode(said.decode("utf-8"), vocab.text.start)
    except UnicodeDecodeError:
        return ids


def _ids(parts: tuple[str | int, ...], text: TextTokenizer, vocab: Vocab) -> list[int]:
    found: list[int] = []
    for part in parts:
        found += [part] if isinstance(part, int) else text.encode(part, vocab.text.start)
    return found
