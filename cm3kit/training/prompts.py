"""Prompts for previews from the pages of a corpus: captions of pictures, and titles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cm3kit_tokenizers.document import Markup, Text
from cm3kit_tokenizers.sequence import PageTokenizer

LONGEST = 80  # characters of a prompt
_WORD = re.compile(r"[^\W\d_]{3,}")
_FILE = re.compile(r"\.(png|jpe?g|gif|svg|webp|bmp|pdf)$", re.I)
_HEADINGS = ("<title>", "<h1>", "<h2>", "<figcaption>")


def prompts_of(
    documents: Iterable[Sequence[int]], tokenizer: PageTokenizer, count: int = 4
) -> tuple[str, ...]:
    """At most so many: words of `alt` of pictures of these documents (ids), then titles and headings."""
    alts: dict[str, None] = {}
    titles: dict[str, None] = {}
    for ids in documents:
        if len(alts) >= count:
            break
        nodes = tokenizer.decode(ids)
        for before, node, after in zip(nodes, nodes[1:], nodes[2:], strict=False):
            # Words that a slice cut off are none of a prompt.
            if not (isinstance(before, Markup) and isinstance(node, Text) and isinstance(after, Markup)):
                continue
            if words := _readable(node.content):
                if before.piece == ' alt="':
                    alts[words] = None
                elif before.piece in _HEADINGS:
                    titles[words] = None
    return tuple([*alts, *titles][:count])


def _readable(text: str) -> str:
    """The text on one line, if there is a word in it, and it is no name of a file."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST and _WORD.search(line) and not _FILE.search(line) else ""
