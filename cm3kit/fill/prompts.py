"""Prompts from files: one a line (.txt), or rows with their own seeds (.jsonl, .csv)."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3kit.json_lines import lines_of
from cm3kit_tokenizers.errors import ConfigError, DataError

MAX_BYTES = 64 << 20
COLUMNS = ("prompt", "seed", "id")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to start from: words, or the path or bytes of a picture; a row's own seed and name, if any."""

    content: str | bytes | Path
    seed: int | None = None
    id: str | None = None


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a file, in order.

    Raises:
        DataError: the file is missing, empty, unreadable, or a row is malformed (its number is named).
        ConfigError: the suffix is none of those known (`bad_value`).
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path} is no prompt file; use one of {', '.join(READERS)}", code="bad_value")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is over {MAX_BYTES >> 20} MB; split it", code="bad_data")
        text = as_utf8(path.read_bytes(), path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path", code="no_file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; convert it", code="unreadable_file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", code="unreadable_file") from None
    prompts = tuple(reader(text, path))
    if not prompts:
        raise DataError(f"{path} holds no prompt; write one a line", code="empty_file")
    return prompts


def as_utf8(data: bytes, path: Path) -> bytes:
    """The bytes of a text file as UTF-8, also of one in UTF-16 or UTF-32 with a mark, as PowerShell writes it.

    Raises:
        DataError: it is UTF-16 without a mark, or not what its mark says (`unreadable_file`).
    """
    marks = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
             (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
    codec = next((codec for mark, codec in marks if data.startswith(mark)), None)
    try:
        if codec is not None:
            return data.decode(codec).encode("utf-8")
    except UnicodeError:
        raise DataError(
            f"{path} is not the {codec} that its mark says; convert it", code="unreadable_file"
        ) from None
    if data[:200].count(0) * 3 > len(data[:200]):
        raise DataError(
            f"{path} is UTF-16 without a mark, or no text; save it as UTF-8", code="unreadable_file"
        )
    return data


def _from_text(text: str, path: Path) -> list[Prompt]:
    return [Prompt(line.strip()) for line in lines_of(text) if line.strip()]


def _from_jsonl(text: str, path: Path) -> list[Prompt]:
    prompts = []
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{path} line {number} is not JSON; mend the line", code="bad_data") from None
        prompts.append(_row(row, f"{path} line {number}"))
    return prompts


def _from_csv(text: str, path: Path) -> list[Prompt]:
    csv.field_size_limit(MAX_BYTES)
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}; mend the file", code="bad_data") from None
    return [_row(row, f"{path} row {number}") for number, row in enumerate(rows, 1)]


def _row(row: Any, where: str) -> Prompt:
    if not isinstance(row, Mapping) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise DataError(
            f'{where} has no text in "prompt"; the columns are {", ".join(COLUMNS)}', code="bad_data"
        )
    seed = row.get("seed")
    try:
        number = None if seed in (None, "") else int(str(seed))
    except ValueError:
        number = -1
    if number is not None and not 0 <= number < 2**63:
        raise DataError(f"{where} has the seed {seed!r}; give a whole number from 0", code="bad_data")
    name = row.get("id")
    return Prompt(row["prompt"], number, None if name in (None, "") else str(name))


READERS: dict[str, Callable[[str, Path], list[Prompt]]] = {
    ".txt": _from_text,
    ".jsonl": _from_jsonl,
    ".csv": _from_csv,
}
