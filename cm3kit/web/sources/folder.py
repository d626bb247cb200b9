"""A folder of HTML pages and their pictures; the folder is the root of the site."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from pathlib import Path

from cm3kit.web.record import About
from cm3kit.web.sources import Item, Piece, SourceOptions, files, source
from cm3kit_tokenizers.html.spans import MAX_BYTES
from cm3kit_tokenizers.site import Site

SUFFIXES = (".html", ".htm", ".xhtml")


@source("folder")
class Folder:
    """Every page below a folder; symbolic links are reported, not followed."""

    def pieces(self, place: str, options: SourceOptions) -> list[Piece]:
        """Groups of `pages` file names."""
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
        """Read each page; one over the size limit is not read completely."""
        root = Path(piece.place)
        for name in piece.names:
            key = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            try:
                handle = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                with os.fdopen(handle, "rb") as file:
                    if not stat.S_ISREG(os.fstat(handle).st_mode):
                        raise OSError("not a regular file")
                    data = file.read(MAX_BYTES + 1)
            except OSError as error:
                reason = "outside" if (root / name).is_symlink() else "unreadable"
                yield Item(key, None, reason=reason, detail=error.strerror or str(error))
                continue
            yield Item(key, data, Site(root / posixpath.dirname(name), root), About(source="folder"))
