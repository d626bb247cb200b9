"""Rows to sample, from .txt, .jsonl, .csv and .parquet files. An invalid row is kept with its error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from cm3kit.config import Settings, message_of
from cm3kit.decode_options import RENAMED, GenerateOptions, table, under_new_names
from cm3kit.fill.constraints import GUIDED, guided
from cm3kit.fill.row_files import read_raw
from cm3kit.json_lines import dump_json
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError

SampleTask = Literal["image", "text", "caption", "document", "pair", "infill"]

MAX_BYTES = 4 << 30
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
    data, raw = read_raw(path, MAX_BYTES, partial(_check_columns, path))
    rows = tuple(_unique(_row(number, *each) for number, each in enumerate(raw)))
    if not rows:
        raise DataError(f"{path} holds no rows; write one prompt per line.", code="empty_file")
    return Rows(rows, path.resolve().parent, hashlib.sha256(data).hexdigest())


def options_of(row: Row, base: GenerateOptions) -> GenerateOptions:
    """The options of a run, overridden by those of a row."""
    return replace(base, **(row.options or {}))


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
        line = " ".join(f"{where}: {place}: {message_of(problem)}".split())
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


def _check_columns(path: Path, names: Iterable[str]) -> None:
    for name in names:
        if RENAMED.get(name, name) not in COLUMNS:
            raise DataError(_unknown(name, f"{path}: column"), code="bad_data")
