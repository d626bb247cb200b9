"""Held-out pages as a public model reads them: spelt in its own tokens, with pictures if it writes some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cm3kit.data.corpus import listing
from cm3kit.fill.options import GenerateOptions, chosen_style
from cm3kit.fill.parts import Parts
from cm3kit.fill.styles import PromptStyle, spelling
from cm3kit.training.validation import spread
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.html.addresses import Unopened
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.sequence import PageTokenizer


def spelt(documents: Sequence[Sequence[int]], parts: Parts, style: PromptStyle | None) -> list[list[int]]:
    """Documents in the tokens that a public model reads; ids of pages that it was never shown stand for none.

    Raises:
        ConfigError: the model reads pages in another way, or the style is of questions (`bad_value`).
    """
    chosen = chosen_style(parts.defaults, GenerateOptions(prompt_style=style))
    if chosen == "chat":
        raise ConfigError("prompt style 'chat' asks about a page; give page or plain.", code="bad_value")
    how = spelling(chosen, parts.text, parts.vocab, None)
    assert how is not None
    marks, (height, width) = parts.defaults.pictures, parts.image.grid
    found = []
    for each in documents:
        row = list(each) if marks is None else marks.mark(each, parts.vocab, height * width)
        # Objectives put the beginning there again.
        found.append(how.spell([parts.vocab.eod, *row])[0][1:])
    return found


def words_of_pages(
    folder: Path, tokenizer: PageTokenizer, split: str, limit: int
) -> tuple[list[list[int]], int]:
    """Pages of a split without their pictures, and how many of these were left out."""
    pages = [page for page in listing(folder) if page.split == split]
    lost: list[Unopened] = []
    documents = []
    for place in spread(len(pages), limit):
        path = pages[place].path
        nodes = Page.parse(path.read_bytes(), path.parent).nodes(lambda address: False, lost)
        documents.append([each for each in tokenizer.encode(nodes) if isinstance(each, int)])
    return documents, len(lost)
