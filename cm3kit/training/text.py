"""What `train text` trains: a byte-level BPE on the words of a corpus' pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from cm3kit.config import Settings
from cm3kit.data.corpus import listing, read_nodes
from cm3kit.data.prepared import is_prepared, texts_of
from cm3kit.data.words import Words
from cm3kit.publish import publishing
from cm3kit.targets import refuse_existing
from cm3kit_tokenizers.document import Text
from cm3kit_tokenizers.text import TextTokenizer


class TextRecipe(Settings):
    """What to learn words from, and how many.

    Attributes:
        data: a folder of pages, or one that `cm3kit data prepare` made.
        size: the largest number of tokens.
        held_out: of prepared data, the share of documents that is not read: the one that `cm3kit data pack` holds out.
    """

    data: Path = Path("data/emoji")
    size: int = Field(3072, ge=256, le=200_000)
    held_out: float = Field(0.0, ge=0, lt=1)


def train_text(recipe: TextRecipe, output: Path) -> Path:
    """Train on the training split and write `output/final/tokenizer.json`."""
    final = output / "final"
    refuse_existing(final, "remove it or choose another --output")
    words = Words()
    tokenizer = TextTokenizer.train(words.heard(_texts(recipe)), recipe.size)
    with publishing(final) as folder:
        tokenizer.save(folder)
        words.save(folder)
    return final


def _texts(recipe: TextRecipe) -> Iterator[str]:
    if is_prepared(recipe.data):
        yield from texts_of(recipe.data, recipe.held_out)
        return
    for page in listing(recipe.data):
        if page.split == "train":
            yield from (node.content for node in read_nodes(page.path) if isinstance(node, Text))
