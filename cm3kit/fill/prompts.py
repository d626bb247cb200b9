"""Prompts from files: one a line (.txt), or rows with their own seeds (.jsonl, .csv, .parquet)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3kit.fill.row_files import read_raw
from cm3kit_tokenizers.errors import Cm3kitError, DataError

MAX_BYTES = 64 << 20
COLUMNS = ("prompt", "seed", "id")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to start from: words, or the path or bytes of a picture; a row's own seed and name, if any."""

    content: str | bytes | Path
    seed: int | None = None
    id: str | None = None


def read_prompts(path: Path, warn: Callable[[str], None] = lambda line: None) -> tuple[Prompt, ...]:
    """The prompts of a file, in order.

    Args:
        warn: told of columns that are not read.

    Raises:
        DataError: the file is missing, empty, unreadable, or a row is malformed (its number is named).
        ConfigError: the suffix is none of those known (`bad_value`).
    """
    rows = [*read_raw(path, MAX_BYTES)[1]]
    prompts = tuple(_prompt(path, where, row) for where, row in rows)
    if not prompts:
        raise DataError(f"{path} holds no prompt; write one per line.", code="empty_file")
    given = dict.fromkeys(name for _, row in rows if isinstance(row, Mapping) for name in row)
    if others := [name for name in given if name not in COLUMNS]:
        warn(
            f"{path}: not read: {', '.join(others)}; the columns of a prompt file are {', '.join(COLUMNS)}, and"
            " cm3kit sample run reads options of rows too"
        )
    return prompts


def _prompt(path: Path, where: str, row: Mapping[str, Any] | Cm3kitError) -> Prompt:
    if isinstance(row, Cm3kitError):
        raise DataError(f"{path} {row.args[0]}", code=row.code)
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise DataError(
            f'{path} {where} has no text in "prompt"; the columns are {", ".join(COLUMNS)}.', code="bad_data"
        )
    seed = row.get("seed")
    try:
        number = None if seed in (None, "") else int(str(seed))
    except ValueError:
        number = -1
    if number is not None and not 0 <= number < 2**63:
        raise DataError(f"{path} {where} has the seed {seed!r}; give a whole number from 0.", code="bad_data")
    name = row.get("id")
    return Prompt(row["prompt"], number, None if name in (None, "") else str(name))
