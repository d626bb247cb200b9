"""A folder of HTML pages with their pictures in it; the folder itself is the root of the site."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from cm3kit.data.web.reasons import Refused
from cm3kit.data.web.record import About
from cm3kit.data.web.sources import Item, Piece, SourceOptions, files, source
from cm3kit_tokenizers.html.spans import MAX_BYTES
from cm3kit_tokenizers.pictures import resolve_src

SUFFIXES = (".html", ".htm", ".xhtml")


@source("folder")
class Folder:
    """Every page below a folder; symbolic links are named, and not followed."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """Runs of `pages` names."""
        root = Path(place)
        if root.is_file():
            return [Piece(str(root.parent), (root.name,))]
        names = sorted(
            os.path.relpath(os.path.join(folder, name), root)
            for folder, _, found in os.walk(root)
            for name in found
            if name.lower().endswith(SUFFIXES)
        )
        if not names:
            files(place, SUFFIXES)
        step = options.pages
        return [Piece(str(root), tuple(names[at : at + step])) for at in range(0, len(names), step)]

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """Read each page; one over the size limit is not read whole."""
        root = Path(piece.place)
        for name in piece.names:
            key = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            try:
                handle = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                with os.fdopen(handle, "rb") as file:
                    if not stat.S_ISREG(os.fstat(handle).st_mode):
                        raise OSError("no regular file")
                    data = file.read(MAX_BYTES + 1)
            except OSError as error:
                reason = "outside" if (root / name).is_symlink() else "unreadable"
                yield Item(key, None, reason=reason, detail=error.strerror or str(error))
                continue
            yield Item(key, data, _Find(root, posixpath.dirname(name)), About(source="folder"))


class _Find:
    """Pictures below the root: relative to the page, or from the root where the address starts with `/`."""

    def __init__(self, root: Path, folder: str) -> None:
        self.root, self.folder = root, folder

    def __call__(self, address: str) -> bytes:
        """The bytes at an address; see `resolve_src`, to which addresses of other kinds go as they are."""
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//", address):
            return resolve_src(address, self.root)
        path = unquote(re.split("[?#]", address, maxsplit=1)[0], errors="surrogateescape")
        whole = posixpath.normpath(posixpath.join("/", self.folder, path))
        # normpath stops at the root, so count the steps: one that leaves it is refused, not bent.
        depth = 0
        for step in posixpath.join("" if path.startswith("/") else self.folder, path.lstrip("/")).split("/"):
            depth += {"..": -1, ".": 0, "": 0}.get(step, 1)
            if depth < 0:
                raise Refused("outside")
        return resolve_src(quote(whole.lstrip("/"), errors="surrogateescape"), self.root)
