"""Answers as the command line gives them: one by one, in a file of lines, or by gap in JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3kit.decoders.grammar.kinds.choices import split
from cm3kit.fill.answers import Answer
from cm3kit.fill.pages import read_bytes
from cm3kit.fill.prompts import MAX_BYTES
from cm3kit.fill.row_files import as_utf8, read_file, text_lines
from cm3kit.json_lines import Malformed, parse
from cm3kit_tokenizers.errors import ConfigError, DataError, PageError
from cm3kit_tokenizers.page import Page


@dataclass(frozen=True, slots=True)
class Given:
    """One answer, or those of several gaps: what is scored, and what a report shows, by gap."""

    answers: Mapping[int, Answer]
    shown: Mapping[str, str]


def collect(page: Page, words: Sequence[str], file: Path | None, gap: int) -> list[Given] | None:
    """All answers, in order: those that were given, those of a file, or else the choices that a gap has itself.

    Returns:
        None where the page has no gap and no answer is given.

    Raises:
        ConfigError: an answer is for a gap that is none (`bad_value`), or there is none for the gaps.
        PageError: there are answers, and no gap (`no_mask`).
        DataError: the file cannot be read, or a line is malformed, with its number.
        PictureError: see `Kit.score`.
    """
    rows: list[Mapping[int, str]] = [{gap: each} for each in words]
    rows += _read(file, gap) if file is not None else []
    own = {
        each.index: each.constraint[1]
        for each in page.gaps
        if each.constraint and each.constraint[0] == "choices"
    }
    if not rows and file is None and gap in own:
        rows = [{gap: each} for each in split(own[gap])]
    if not page.gaps:
        if rows:
            raise PageError(
                "the page has no gap for the answers; write <mask> where they go.", code="no_mask"
            )
        return None
    if not rows:
        raise ConfigError("the page has gaps; give --answer or --answers for them.", code="bad_value")
    return [_given(page, row) for row in rows]


def _given(page: Page, row: Mapping[int, str]) -> Given:
    kinds = {gap.index: gap.kind for gap in page.gaps}
    if wrong := [index for index in row if index not in kinds]:
        raise ConfigError(
            f"an answer is for gap {wrong[0]}, and the page has gaps 0 to {len(kinds) - 1}.", code="bad_value"
        )
    answers = {index: read_bytes(text) if kinds[index] == "image" else text for index, text in row.items()}
    return Given(answers, {str(index): text for index, text in row.items()})


def _read(file: Path, gap: int) -> list[Mapping[int, str]]:
    data = as_utf8(read_file(file, MAX_BYTES), file)
    rows = [*(_json_rows if file.suffix.lower() == ".jsonl" else _text_rows)(file, data, gap)]
    if not rows:
        raise DataError(f"{file} holds no answer; write one per line.", code="empty_file")
    return rows


def _text_rows(file: Path, data: bytes, gap: int) -> Iterator[Mapping[int, str]]:
    for _, line in text_lines(data):
        if isinstance(line, DataError):
            raise DataError(f"{file} {line.args[0]}", code=line.code)
        yield {gap: line}


def _json_rows(file: Path, data: bytes, gap: int) -> Iterator[Mapping[int, str]]:
    for number, value in parse(data):
        if value is Malformed.UTF8:
            raise DataError(f"{file} line {number} is not UTF-8; convert it.", code="bad_data")
        try:
            yield _row(value, gap)
        except ValueError:
            raise DataError(
                f'{file} line {number} is neither a text nor an object such as {{"0": "red"}}; mend the line.',
                code="bad_data",
            ) from None


def _row(given: Any, gap: int) -> Mapping[int, str]:
    if isinstance(given, str):
        return {gap: given}
    if not isinstance(given, dict) or not given or not all(isinstance(each, str) for each in given.values()):
        raise ValueError
    return {int(index): text for index, text in given.items()}
