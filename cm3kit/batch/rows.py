"""Rows to sample, from .txt, .jsonl, .csv and .parquet files. An invalid row is kept with its error."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from cm3kit.arrow import python_rows
from cm3kit.config import Settings
from cm3kit.decode_options import RENAMED, GenerateOptions, table, under_new_names
from cm3kit.extras import need
from cm3kit.fill.constraints import GUIDED, guided
from cm3kit.fill.prompts import as_utf8
from cm3kit.json_lines import dump_json
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError

SampleTask = Literal["image", "text", "caption", "document", "pair", "infill"]

MAX_BYTES, MOST_CELL = 4 << 30, 64 << 20
MAX_SEED = 2**63 - 1
OPTIONS = tuple(table())
_OPTIONS = TypeAdapter(GenerateOptions)


class Asked(Settings):
    """Fields of a row, in addition to all settings of `GenerateOptions`.

    Attributes:
        prompt: text; for a caption, the path of a picture.
        page: path of a page with gaps, and `html` the page itself; `select` CSS selectors of further gaps.
        root: folder of the page's site, whose pictures may be opened; by default the page's own.
        uncover: remove attributes that would hide a generated picture, see `Page.uncovered`.
        guided_choice: the allowed content of every gap, by vLLM's names; as `constrain`.
        task: the task; a page is always filled.
        seed: the row's own; by default derived from the run's seed and the row's id.
        id: the row's name; by default its number.
        n: outputs of this row.
        meta: any JSON value; it is copied into the manifest.
    """

    prompt: str = ""
    page: str | None = None
    html: str | None = None
    select: tuple[str, ...] = ()
    root: str | None = None
    uncover: bool = False
    guided_choice: Any = None
    guided_regex: Any = None
    guided_json: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    task: SampleTask | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    id: str | None = None
    n: int | None = Field(None, ge=1, le=10_000)
    meta: Any = None


COLUMNS = (*Asked.model_fields, *OPTIONS)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file: number from 0, name, location in the file, and its fields or its error.

    `options` are the row's own.
    """

    number: int
    id: str
    where: str
    asked: Asked = field(default_factory=Asked)
    options: Mapping[str, Any] | None = None
    error: Cm3kitError | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a file, its folder (paths in rows are relative to it) and the SHA-256 of its bytes."""

    rows: tuple[Row, ...]
    folder: Path
    sha256: str


def read_rows(path: Path) -> Rows:
    """The rows of a file, in order; blank lines of .txt and .jsonl are skipped.

    Raises:
        DataError: the file is missing, unreadable or empty, or its header has an unknown column.
        ConfigError: the suffix is unknown (`bad_value`).
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path} is not a prompt file; use one of {', '.join(READERS)}.", code="bad_value")
    data = _bytes(path)
    read = data if path.suffix.lower() == ".parquet" else as_utf8(data, path)
    found = tuple(_unique(_row(number, *each) for number, each in enumerate(reader(read, path))))
    if not found:
        raise DataError(f"{path} holds no rows; write one prompt per line.", code="empty_file")
    return Rows(found, path.resolve().parent, hashlib.sha256(data).hexdigest())


def options_of(row: Row, base: GenerateOptions) -> GenerateOptions:
    """The options of a run, overridden by those of a row."""
    return replace(base, **(row.options or {}))


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is over {MAX_BYTES >> 30} GB; split it.", code="bad_data")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path.", code="no_file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", code="unreadable_file") from None


Raw = tuple[str, "Mapping[str, Any] | Cm3kitError"]


def _row(number: int, where: str, given: Mapping[str, Any] | Cm3kitError) -> Row:
    if isinstance(given, Cm3kitError):
        return Row(number, str(number), where, error=given)
    try:
        dump_json(given).encode()
    except (RecursionError, ValueError, TypeError) as error:
        if not isinstance(error, UnicodeEncodeError):
            wrong = DataError(
                f"{where} cannot be saved as JSON: {type(error).__name__}; fix the row.", code="bad_data"
            )
            return Row(number, str(number), where, error=wrong)
        # a lone surrogate, which JSON can escape and UTF-8 cannot encode
        wrong = DataError(f"{where} holds a lone surrogate; fix the row.", code="bad_data")
        return Row(number, str(number), where, error=wrong)
    given = under_new_names(given)
    name = str(number) if given.get("id") in (None, "") else str(given["id"])
    try:
        asked = {
            key: value for key, value in given.items() if value is not None and key in Asked.model_fields
        }
        options = {key: value for key, value in given.items() if value is not None and key in OPTIONS}
        if unknown := [key for key in given if key not in COLUMNS]:
            raise DataError(_unknown(unknown[0], where), code="bad_data")
        if told := guided({name: asked.get(name) for name in GUIDED}):
            own = options.get("constrain", ())
            options["constrain"] = [*own, *told] if isinstance(own, list | tuple) else own
        valid = _OPTIONS.validate_python(options)
        valid.check()
        found = Asked.model_validate(asked if "id" not in asked else {**asked, "id": name})
        return Row(number, name, where, found, {key: getattr(valid, key) for key in options} or None)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "row"
        line = " ".join(f"{where}: {place}: {problem['msg']}".split())
        return Row(number, name, where, error=DataError(f"{line}; fix the row.", code="bad_data"))
    except DataError as error:
        return Row(number, name, where, error=error)
    except ConfigError as error:
        wrong = DataError(f"{where}: {error.args[0]}", code="bad_data")
        return Row(number, name, where, error=wrong)


def _unique(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows with a duplicate id become errors: their outputs could not be distinguished."""
    found = list(rows)
    wanted = {row.id: row.number for row in reversed(found) if row.error is None}
    for row in found:
        if row.error is None and wanted[row.id] != row.number:
            text = f"{row.where}: the id {row.id!r} occurs twice; give each row its own."
            yield replace(row, error=DataError(text, code="bad_data"))
        else:
            yield row


def _unknown(name: str, where: str) -> str:
    near = get_close_matches(name, COLUMNS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else 'put data for the manifest into "meta".'
    return f"{where}: {name!r} is unknown; {hint}"


def _from_text(data: bytes, path: Path) -> Iterator[Raw]:
    for where, line in _lines(data):
        yield where, line if isinstance(line, Cm3kitError) else {"prompt": line}


def _from_jsonl(data: bytes, path: Path) -> Iterator[Raw]:
    for where, line in _lines(data):
        if isinstance(line, Cm3kitError):
            yield where, line
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield where, row
        else:
            yield where, DataError(f"{where} is not a JSON object; fix the line.", code="bad_data")


def _lines(data: bytes) -> Iterator[tuple[str, str | Cm3kitError]]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"line {number}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            yield where, DataError(f"{where} is not UTF-8; convert it.", code="bad_data")
            continue
        if text:
            yield where, text


def _from_csv(data: bytes, path: Path) -> Iterator[Raw]:
    csv.field_size_limit(MOST_CELL)
    try:
        table = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        _check_header(table.fieldnames or (), path)
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
    """A CSV cell: JSON if it is a list or an object, or one selector."""
    if key not in ("prompt", "html", "id") and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return [value] if key == "select" else value


def _from_parquet(data: bytes, path: Path) -> Iterator[Raw]:
    parquet = need("pyarrow.parquet", "web", "Reading Parquet")
    import pyarrow

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        _check_header(file.schema_arrow.names, path)
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


def _check_header(names: Any, path: Path) -> None:
    for name in names:
        if RENAMED.get(name, name) not in COLUMNS:
            raise DataError(_unknown(name, f"{path}: column"), code="bad_data")


READERS: dict[str, Callable[[bytes, Path], Iterator[Raw]]] = {
    ".txt": _from_text,
    ".jsonl": _from_jsonl,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
}
