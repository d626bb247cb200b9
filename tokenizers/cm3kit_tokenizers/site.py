"""Picture files of a page: in its folder, or below the folder of its site."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from cm3kit_tokenizers.errors import PictureError
from cm3kit_tokenizers.pictures import SCHEME, first_there, left, names, resolve_src, tidied


class Site:
    """Opens pictures by the addresses in a page; nothing is downloaded.

    Args:
        folder: of the page.
        root: the folder to which addresses beginning with `/` are relative and which none may leave; by default the
            page's own. With a root, symbolic links are followed if they stay below it.

    Raises:
        PictureError: picture_outside if the page's folder is not below the root.
    """

    def __init__(self, folder: Path, root: Path | None = None, links: bool = False) -> None:
        self.root = (root or folder).absolute()
        self._links = links
        self._steps: tuple[str, ...] = ()
        if root is not None:
            try:
                self._steps = folder.absolute().relative_to(self.root).parts
            except ValueError:
                raise PictureError(
                    f"The page's folder {str(folder)[:100]!r} is not below {str(root)[:100]!r}; give a folder that"
                    " holds both.",
                    code="picture_outside",
                ) from None

    def __call__(self, address: str) -> bytes:
        """The bytes at an address; PictureError as `resolve_src`."""
        src = tidied(address)
        if src[:5].lower() == "data:":
            return resolve_src(src, None)
        places = [(self.root, parts) for parts in self.paths(src)]
        try:
            return first_there(src, places)
        except PictureError as error:
            if error.code != "picture_outside" or not self._links:
                raise
        return first_there(src, [(self.root, each) for each in map(self._followed, places) if each])

    def paths(self, address: str) -> list[list[str]]:
        """Candidate files of an address below the root, as path components, best first.

        Raises:
            PictureError: picture_outside for an address on another host or outside of the root.
        """
        src = tidied(address)
        scheme = SCHEME.match(src)
        if not src or src.startswith("//") or (scheme and scheme[0].lower() != "file:"):
            raise left(src)
        if scheme:
            return [self._of_file(src)]
        # The decoded path without its query is the meaning of the address; if it leaves the root, stop.
        if self._walked(unquote(re.split("[?#]", src, maxsplit=1)[0], errors="surrogateescape")) is None:
            raise left(src)
        found = [self._walked(("/" if src.startswith("/") else "") + each.lstrip("/")) for each in names(src)]
        return [each for each in found if each]

    def _of_file(self, src: str) -> list[str]:
        path = unquote(re.split("[?#]", src[5:], maxsplit=1)[0], errors="surrogateescape")
        if path.startswith("//"):
            host, _, rest = path[2:].partition("/")
            path = "/" + rest if host in ("", "localhost") else ""
        steps = Path(path).parts
        home = self.root.parts
        if steps[: len(home)] != home or ".." in steps or len(steps) == len(home):
            raise left(src)
        return list(steps[len(home) :])

    def _walked(self, path: str) -> list[str] | None:
        """Components of a path below the root, with `..` resolved; None if it leaves the root."""
        steps = [] if path.startswith("/") else list(self._steps)
        for step in path.strip("/").split("/"):
            if step == "..":
                if not steps:
                    return None
                steps.pop()
            elif step not in ("", "."):
                steps.append(step)
        if path.endswith("/") and steps:
            steps.append("")
        return steps

    def _followed(self, place: tuple[Path, Sequence[str]]) -> list[str] | None:
        """Components of a file after resolving symbolic links; None if they leave the root."""
        try:
            real = self.root.joinpath(*place[1]).resolve(strict=True)
            return list(real.relative_to(self.root.resolve()).parts)
        except (OSError, ValueError, RuntimeError):
            return None
