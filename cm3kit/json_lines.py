"""JSON as it is written here: UTF-8, paths as strings, and no NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def dump_json(record: Record, indent: int | None = None) -> str:
    """JSON in UTF-8, with paths as strings and without NaN."""
    return json.dumps(_finite(record), ensure_ascii=False, indent=indent, default=str, allow_nan=False)


def dump_jsonl(records: Sequence[Record]) -> str:
    """One JSON object a line."""
    return "".join(f"{dump_json(record)}\n" for record in records)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
