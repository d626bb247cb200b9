"""A page's nodes ↔ one sequence of ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cm3kit_tokenizers.document import Gap, Image, Markup, Node, Picture, Piece, Text
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab

# The codes of a picture, and which of them are masked by its missing region (None: all are known).
Codes = tuple[Sequence[int], Sequence[bool] | None]


@dataclass(frozen=True)
class PageTokenizer:
    """Combines the text tokenizer and picture codes in one id space."""

    text: TextTokenizer
    vocab: Vocab

    def encode(
        self, nodes: Sequence[Piece], codes_of: Callable[[Picture], Codes] | None = None
    ) -> list[int | Gap]:
        """Ids of nodes, with gaps kept in place; `codes_of` encodes each `Picture`."""
        ids: list[int | Gap] = []
        markup, encode, start = self.vocab.markup_ids, self.text.encode, self.vocab.text.start
        for index, node in enumerate(nodes):
            kind = type(node)
            if kind is Markup:
                ids.append(markup[node.piece])  # type: ignore[union-attr]
            elif kind is str or kind is Text:
                content: str = node if kind is str else node.content  # type: ignore[assignment,union-attr]
                if content.endswith(" ") and index + 1 < len(nodes) and type(nodes[index + 1]) is Gap:
                    content = healed(content)
                ids += encode(content, start)
            elif isinstance(node, Image):
                ids += self.image_ids(node.codes)
            elif isinstance(node, Picture):
                assert codes_of is not None
                ids += self._picture(node, *codes_of(node))
            else:
                ids.append(node)  # type: ignore[arg-type]
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Ids of text in the shared space."""
        return self.text.encode(text, self.vocab.text.start)

    def image_ids(self, codes: Sequence[int]) -> list[int]:
        """Ids of image codes in the shared space."""
        start = self.vocab.image.start
        return [start + int(each) for each in codes]

    def _picture(
        self, node: Picture, codes: Sequence[int], missing: Sequence[bool] | None
    ) -> list[int | Gap]:
        ids = self.image_ids(codes)
        if missing is None or node.gap is None:
            return list(ids)
        out: list[int | Gap] = []
        part = start = 0
        while start < len(ids):
            stop = start
            while stop < len(ids) and missing[stop] == missing[start]:
                stop += 1
            if missing[start]:
                out.append(Gap(node.gap, "image", stop - start, part))
                part += 1
            else:
                out.extend(ids[start:stop])
            start = stop
        return out

    def decode(self, ids: Sequence[int]) -> list[Node]:
        """Nodes of ids; specials and sentinels are removed."""
        vocab = self.vocab
        nodes: list[Node] = []
        start = 0
        while start < len(ids):
            kind = next(
                (each for each in (vocab.markup, vocab.text, vocab.image) if ids[start] in each), None
            )
            stop = start + 1
            while (
                kind in (vocab.text, vocab.image)
                and stop < len(ids)
                and kind is not None
                and ids[stop] in kind
            ):
                stop += 1
            run = [each - kind.start for each in ids[start:stop]] if kind is not None else []
            if kind == vocab.markup:
                nodes.append(Markup(vocab.piece(ids[start])))
            elif kind == vocab.text:
                nodes.append(Text(self.text.decode(run)))
            elif kind == vocab.image:
                nodes.append(Image(tuple(run)))
            start = stop
        return nodes


def healed(text: str) -> str:
    """Text before a gap without its trailing space.

    Tokens include the space before a word, so the model generates that space itself; the page keeps
    its own, and a fill's leading space is dropped if the page has one.
    """
    return text[:-1] if text.endswith(" ") else text
