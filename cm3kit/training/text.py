"""What `train text` trains: a byte-level BPE on the words of a corpus' pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from cm3kit.config import Settings
from cm3kit.data.corpus import listing, read_nodes
from cm3kit.publish import publishing
from cm3kit_tokenizers.document import Text
from cm3kit_tokenizers.errors import OutputError
from cm3kit_tokenizers.text import TextTokenizer


class TextRecipe(Settings):
    """`size` is the largest number of tokens."""

    data: Path = Path("data/emoji")
    size: int = Field(3072, ge=256, le=200_000)


def train_text(recipe: TextRecipe, output: Path) -> Path:
    """Train on the training split and write `output/final/tokenizer.json`."""
    final = output / "final"
    if final.exists():
        raise OutputError(f"{final} exists already; remove it or choose another --output.", code="exists")
    tokenizer = TextTokenizer.train(_texts(recipe.data), recipe.size)
    with publishing(final) as folder:
        tokenizer.save(folder)
    return final


def _texts(folder: Path) -> Iterator[str]:
    for page in listing(folder):
        if page.split == "train":
            yield from (node.content for node in read_nodes(page.path) if isinstance(node, Text))
