"""OBELICS (arXiv:2306.16527): Parquet rows with the parallel lists `texts` and `images`, pictures by URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from cm3kit.web.sources import Item, Piece, SourceOptions, source
from cm3kit.web.sources.parquet import Parquet


@source("obelics")
class Obelics(Parquet):
    """Rows of the published data set; the URL of the page is in `general_metadata`."""

    kind = "obelics"

    def items(self, piece: Piece, options: SourceOptions) -> Iterator[Item]:
        """Rows with the URL of the page."""
        for found in super().items(piece, options):
            try:
                url = json.loads(str(found.about.meta.get("general_metadata", "{}"))).get("url", "")
            except (ValueError, AttributeError):
                url = ""
            told = {name: value for name, value in found.about.meta.items() if "metadata" not in name}
            yield replace(found, about=replace(found.about, url=str(url or found.about.url), meta=told))
