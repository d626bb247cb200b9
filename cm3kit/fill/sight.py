"""What a model sees of a page: its nodes with the pictures that can be opened, and lines on those that cannot."""

from __future__ import annotations

from collections.abc import Iterator

from cm3kit_tokenizers.errors import PictureError
from cm3kit_tokenizers.html.addresses import Unopened
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.pictures import load_picture

_SHOWN = 5
_LEAST_SIDE = 4
"""In pixels: what is smaller counts visitors or keeps a place, and is not what a caption is about."""


class Sight:
    """The page as it is read before its gaps are written.

    Args:
        sees: whether the model knows pictures; one of words alone reads the page without them.

    Raises:
        PictureError: all that is to be written are captions of pictures that cannot be opened.
        PageError: see `Page.nodes`.
    """

    def __init__(self, page: Page, sees: bool = True) -> None:
        self._page, self._site = page, page.site()
        self._failures: dict[str, PictureError] = {}
        lost: list[Unopened] = []
        self.nodes = page.nodes(self._usable if sees else lambda _: False, lost)
        if not sees:
            line = "the gaps are written without the pictures of the page: this model knows words alone."
            self.warnings: tuple[str, ...] = (*page.notes, *([line] if lost else []))
            return
        captions = {gap for each in lost if not each.instead for gap in each.gaps}
        if captions and len(captions) == len(page.gaps):
            self._refuse(min(captions), next(each for each in lost if min(captions) in each.gaps))
        self.warnings = (*page.notes, *page.covered(), *self._lines(lost))

    def read(self, address: str) -> bytes:
        """The bytes of a picture; PictureError as `Site`."""
        return self._site(address)

    def _usable(self, address: str) -> bool:
        """Whether a picture can be opened."""
        try:
            width, height = load_picture(self._site(address)).size
            if min(width, height) < _LEAST_SIDE:
                raise PictureError(
                    f"The picture {address[:80]!r} has {width}x{height} pixels, as placeholders have.",
                    code="bad_picture",
                )
        except PictureError as error:
            self._failures[address] = error
            return False
        return True

    def _why(self, lost: Unopened) -> PictureError:
        """The error that says most: a picture that is there and damaged, then one that is not there."""
        found = [self._failures[each] for each in lost.addresses if each in self._failures]
        ranks = {"bad_picture": 0, "unreadable_file": 1, "picture_outside": 2, "no_file": 3}
        if lost.element != "img":
            return PictureError(f"A model does not read <{lost.element}>.", code="bad_picture")
        none = PictureError("The picture has no address.", code="no_file")
        return min(found, key=lambda each: ranks.get(each.code, 0), default=none)

    def _refuse(self, index: int, lost: Unopened) -> None:
        error, line = self._why(lost), self._page.gaps[index].line
        raise PictureError(f"Line {line}: a caption without its picture. {error.args[0]}", code=error.code)

    def _lines(self, lost: list[Unopened]) -> Iterator[str]:
        told = [each for each in lost if each.gaps]
        for each in told:
            lines = ", ".join(str(self._page.gaps[index].line) for index in each.gaps)
            how = f"by the placeholder {each.instead[:80]!r} of" if each.instead else "without"
            yield f"line {lines}: written {how} the picture that it is about. {self._why(each).args[0]}"
        others: dict[str, int] = {}
        for each in lost:
            if not each.gaps and not each.instead:
                line = str(self._why(each).args[0])
                others[line] = others.get(line, 0) + 1
        for line in list(others)[:_SHOWN]:
            yield f"the gaps are written without a picture of the page. {line}"
        if more := sum(list(others.values())[_SHOWN:]):
            yield f"the gaps are written without {more} more pictures of the page."
