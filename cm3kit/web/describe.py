"""Counts of a data folder of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def stats(folder: Path) -> dict[str, Any]:
    """Counts of prepared pages, of token shards, or of the picture dictionary.

    Raises:
        DataError: the folder is of none of these kinds.
    """
    if (folder / "parts").is_dir():
        from cm3kit.web.report import stats as of_parts

        return of_parts(folder)
    if (folder / "index.json").is_file():
        from cm3kit.data.token_shards import TokenShards

        shards = TokenShards(folder)
        known = ("documents", "tokens", "duplicates", "dtype", "grid", "text_sha256", "image_sha256")
        lengths = sorted(shards.lengths.tolist())
        return {
            **{name: shards.index[name] for name in known}, "shards": len(shards.index["shards"]),
            "held_out": int(shards.held.sum()), "median_length": lengths[len(lengths) // 2],
            "longest": lengths[-1],
        }  # fmt: skip
    from cm3kit.data.dictionary import stats as of_dictionary

    return of_dictionary(folder)
