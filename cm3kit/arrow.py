"""Rows of Arrow tables as Python values: one that has none costs its own row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_NO_VALUE = (ValueError, OverflowError)


def python_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a record batch; for a row with a value that Python cannot hold, such as bytes that are no UTF-8 in a
    column of text, the reason."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except _NO_VALUE:
        yield from (_row(batch, at) for at in range(batch.num_rows))
    else:
        yield from rows


def _row(batch: Any, at: int) -> dict[str, Any] | str:
    from pyarrow.types import is_temporal

    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[at].as_py()
        except _NO_VALUE as error:
            # A point in time beyond those of Python is nothing that is read.
            if not is_temporal(column.type):
                return f"{name}: {error}"
    return row
