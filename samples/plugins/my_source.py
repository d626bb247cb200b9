"""A data source: a page for each paragraph of a text. Try: cm3kit data prepare notes.txt --from paragraphs -o out."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from cm3kit.web.sources import Item, Piece, SourceOptions, about, files, source


@source("paragraphs")
class Paragraphs:
    """Blank lines part the paragraphs of .txt files."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """A piece for each file, in order."""
        return [Piece(path) for path in files(place, (".txt",))]

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """The pages of a file, in order."""
        paragraphs = Path(piece.place).read_text(encoding="utf-8").split("\n\n")
        for number, text in enumerate(each.strip() for each in paragraphs):
            if text:
                page = f"<p>{escape(text)}</p>".encode()
                yield Item(f"{piece.place}#{number}", page, about=about("paragraphs"))
