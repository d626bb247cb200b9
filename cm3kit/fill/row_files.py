"""Rows of .txt, .jsonl, .csv and .parquet files. A malformed row is kept with its error."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cm3kit.arrow import python_rows
from cm3kit.extras import need
from cm3kit.json_lines import Malformed, parse
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError

MOST_CELL = 64 << 20
Raw = tuple[str, Mapping[str, Any] | Cm3kitError]
"""Location of a row in its file, such as `line 3`, and its columns or its error."""
CheckColumns = Callable[[Iterable[str]], None]


def read_raw(
    path: Path, max_bytes: int, check_columns: CheckColumns = lambda names: None
) -> tuple[bytes, Iterator[Raw]]:
    """The bytes of a file, and its rows in order; blank lines are skipped.

    Args:
        check_columns: called with the column names of a table; it may raise.

    Raises:
        DataError: the file is missing, unreadable or over `max_bytes`.
        ConfigError: the suffix is unknown (`bad_value`).
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path} is not a prompt file; use one of {', '.join(READERS)}.", code="bad_value")
    data = read_file(path, max_bytes)
    return data, reader(
        data if path.suffix.lower() == ".parquet" else as_utf8(data, path), path, check_columns
    )


def read_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file; DataError if it is missing (`no_file`), unreadable, or over `max_bytes` (`bad_data`)."""
    try:
        if path.stat().st_size > max_bytes:
            raise DataError(f"{path} is over {max_bytes >> 20:,} MB; split it.", code="bad_data")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path.", code="no_file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", code="unreadable_file") from None


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
            f"{path} is not the {codec} that its mark says; convert it.", code="unreadable_file"
        ) from None
    if data[:200].count(0) * 3 > len(data[:200]):
        raise DataError(
            f"{path} is UTF-16 without a mark, or no text; save it as UTF-8.", code="unreadable_file"
        )
    return data


def text_lines(data: bytes) -> Iterator[tuple[str, str | DataError]]:
    """Location and text of each line that is not blank."""
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        where = f"line {number}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            yield where, DataError(f"{where} is not UTF-8; convert it.", code="bad_data")
            continue
        if text:
            yield where, text


def _from_text(data: bytes, path: Path, check_columns: CheckColumns) -> Iterator[Raw]:
    for where, line in text_lines(data):
        yield where, line if isinstance(line, Cm3kitError) else {"prompt": line}


def _from_jsonl(data: bytes, path: Path, check_columns: CheckColumns) -> Iterator[Raw]:
    for number, row in parse(data):
        where = f"line {number}"
        if row is Malformed.UTF8:
            yield where, DataError(f"{where} is not UTF-8; convert it.", code="bad_data")
        elif isinstance(row, dict):
            yield where, row
        else:
            yield where, DataError(f"{where} is not a JSON object; fix the line.", code="bad_data")


def _from_csv(data: bytes, path: Path, check_columns: CheckColumns) -> Iterator[Raw]:
    csv.field_size_limit(MOST_CELL)
    try:
        table = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        check_columns(table.fieldnames or ())
        for number, row in enumerate(table, 1):
            where = f"row {number}"
            if None in row:
                yield where, DataError(f"{where} has more cells than the header.", code="bad_data")
                continue
            yield where, {key: _cell(key, value) for key, value in row.items() if value not in (None, "")}
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; convert it.", code="unreadable_file") from None
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}; fix the file.", code="bad_data") from None


def _cell(key: str, value: str) -> Any:
    """A CSV cell: JSON if it is a list or an object, or one selector; columns of words are words."""
    if key not in ("prompt", "html", "id", "answer", "name", "page") and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return [value] if key == "select" else value


def _from_parquet(data: bytes, path: Path, check_columns: CheckColumns) -> Iterator[Raw]:
    parquet = need("pyarrow.parquet", "web", "Reading Parquet")
    import pyarrow

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        check_columns(file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches():
            for row in python_rows(batch):
                number += 1
                where = f"row {number}"
                wrong = DataError(f"{where} cannot be read: {row}; fix the row.", code="bad_data")
                yield where, wrong if isinstance(row, str) else row
    except pyarrow.ArrowException as error:
        line = " ".join(str(error).split())[:160]
        raise DataError(f"{path} is not Parquet: {line}.", code="bad_data") from None


READERS: dict[str, Callable[[bytes, Path, CheckColumns], Iterator[Raw]]] = {
    ".txt": _from_text,
    ".jsonl": _from_jsonl,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
}
