"""Which rows are asked."""

from __future__ import annotations

from typing import Any


def ambiguous(rows: Any) -> Any:
    """Held-out rows with several candidates, the right one among them."""
    return rows.filter(
        lambda row: (
            row["split"] == "test" and len(row["candidates"]) > 1 and row["title"] in row["candidates"]
        )
    )


def test_rows(rows: Any) -> Any:
    """Held-out rows."""
    return rows.filter(lambda row: row["split"] == "test")
