"""Text tables read line by line: a malformed line, such as one with an open quote, does not affect the next."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from cm3kit.web.sources.rows import CAPTIONS, FILES, PICTURES, TEXTS, URLS, is_address
from cm3kit_tokenizers.disguise import disguise
from cm3kit_tokenizers.errors import DataError

MOST_LINE = 64 << 20
_LOOKED = 64
_MOST_LINES = 2000  # of one row
_NAMES = {each.lower() for each in (*CAPTIONS, *PICTURES, *FILES, *TEXTS, *URLS, "html", "images", "texts")}


@dataclass(frozen=True, slots=True)
class Table:
    """Format of a table: encoding, delimiter, whether cells may be quoted, column names.

    `header` says whether a line holds the names, `before` how many lines come before it and the rows.
    """

    codec: str
    delimiter: str
    quoted: bool
    names: tuple[str, ...]
    header: bool
    before: int = 0


def look(place: str, own: Sequence[str] = ()) -> Table:
    """Detect the format of a table from its first lines.

    Args:
        own: column names given by the user; numbers from 1 for a table without a header.

    Raises:
        DataError: bad_data if the columns are ambiguous; the message names the setting that resolves it.
    """
    with open(place, "rb") as file:
        head = file.read(1 << 20)
    if what := disguise(head):
        raise DataError(f"{place} {what}.", code="bad_data")
    codec = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    lines = [
        each for each in islice(_lines(io.BytesIO(head), codec), _LOOKED) if each is not None and each.strip()
    ]
    if not lines:
        return Table(codec, ",", True, ("caption", "url"), False)
    quoted = not place.lower().endswith(".tsv")
    delimiter, before = _delimiter(lines, place.lower().endswith(".tsv"))
    rows = [cells for each in lines[before:] if (cells := _cells(each, delimiter, quoted)) is not None]
    if own and all(each.isdecimal() for each in own):
        width = max(map(len, rows), default=0)
        numbers = tuple(str(place + 1) for place in range(width))
        return Table(codec, delimiter, quoted, numbers, False, before)
    first = [each.strip() for each in rows[0]] if rows else []
    known = {each.lower() for each in own} | _NAMES
    if any({each.lower(), _plain(each)} & known for each in first) and not any(map(is_address, first)):
        names = tuple(_spelt(each, own) for each in first)
        _named(place, names, own)
        return Table(codec, delimiter, quoted, names, True, before)
    return Table(codec, delimiter, quoted, _guessed(place, rows), False, before)


def _delimiter(lines: Sequence[str], tabs: bool) -> tuple[str, int]:
    """The delimiter of a table, and how many lines come before it: comments, and `sep=;` of spreadsheets."""
    before, said = 0, ""
    for line in lines[:-1]:
        if found := re.match(r"sep=(.)\s*\Z", line, re.I):
            said = found[1]
        elif not line.startswith("#") or _widths(line) == _widths(lines[before + 1]):
            break
        before += 1
    if said or tabs or "\t" in lines[before]:
        return said or "\t", before
    counts = {each: lines[before].count(each) for each in ",;|"}
    if not counts[","] and not counts[";"] and counts["|"]:
        return "|", before
    return ";" if counts[";"] > counts[","] else ",", before


def _widths(line: str) -> tuple[int, ...]:
    return tuple(line.count(each) for each in ",;\t")


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _spelt(name: str, own: Sequence[str]) -> str:
    """A column's name in the spelling that `rows` uses, ignoring case and spaces."""
    if name in own:
        return name
    known = (*CAPTIONS, *PICTURES, *FILES, *TEXTS, *URLS)
    return next((each for each in (name, name.lower(), _plain(name)) if each in known), name)


def _named(place: str, names: Sequence[str], own: Sequence[str]) -> None:
    twice = [each for each in names if names.count(each) > 1 and (each in own or each.lower() in _NAMES)]
    if twice:
        raise DataError(
            f"{place} has {names.count(twice[0])} columns named {twice[0]}; rename all but one.",
            code="bad_data",
        )
    small = {each.lower() for each in names}
    words = small & {each.lower() for each in (*CAPTIONS, *TEXTS, "html")} or set(names) & set(own)
    if not words:
        raise DataError(
            f"{place}: no column of {', '.join(names)[:200]} is known to hold text; name it: --column caption=NAME.",
            code="bad_data",
        )


def _guessed(place: str, rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names for the columns of a table without a header: the one with addresses, and the other one."""
    width = max(map(len, rows), default=0)
    whole = [row for row in rows if len(row) == width]
    shares = (
        [sum(is_address(row[place]) for row in whole) / len(whole) for place in range(width)] if whole else []
    )
    pictures = [place for place, share in enumerate(shares) if share > 0.5]
    if width == 2 and len(pictures) == 1:
        return ("url", "caption") if pictures[0] == 0 else ("caption", "url")
    if width == 2 and not pictures and max(shares) > 0:
        return ("url", "caption") if shares[0] > shares[1] else ("caption", "url")
    raise DataError(
        f"{place} has no header, and it is not clear which of its {width} columns holds the picture and which the text;"
        " add a header line, or name the columns by number: --column caption=2 --column url=1.",
        code="bad_data",
    )


def read(place: str, table: Table) -> Iterator[dict[str, str] | str]:
    """Rows as mappings by column name; for a malformed line a description of the fault.

    A quote that is not closed invalidates only its own line.
    """
    with open(place, "rb") as file:
        lines = _Ahead(_lines(file, table.codec))
        left = table.before + table.header
        for line in lines:
            if left and line is not None and line.strip():
                left -= 1
                continue
            if line is None:
                yield "the line is not in the encoding of the file, or too long"
            elif line.strip():
                yield _row(line, lines, table)


def _row(line: str, lines: _Ahead, table: Table) -> dict[str, str] | str:
    # A quote inside of a cell, as in 5" nails, is a character like any other.
    opens = table.quoted and re.search(rf'(?:\A|{re.escape(table.delimiter)})"', line) is not None
    text, more, odd = line, 0, opens and line.count('"') % 2 == 1
    while odd:
        # The row may go on in the next line.
        following = lines.peek(more) if more < _MOST_LINES else None
        if following is None or len(text) > MOST_LINE:
            return "a quote is not closed"
        text, more, odd = text + following, more + 1, following.count('"') % 2 == 0
    cells = _cells(text, table.delimiter, table.quoted)
    if cells is None:
        return "a quote is not closed, or stands where none can"
    if len(cells) != len(table.names):
        return f"{len(cells)} cells, and there are {len(table.names)} columns"
    lines.skip(more)
    return dict(zip(table.names, cells, strict=True))


def _cells(text: str, delimiter: str, quoted: bool) -> list[str] | None:
    """The cells of a row; None if its quotes are not balanced."""
    text = text.rstrip("\r\n")
    if not quoted:
        return text.split(delimiter)
    csv.field_size_limit(MOST_LINE * 2)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


class _Ahead:
    """Lines with look-ahead."""

    def __init__(self, lines: Iterator[str | None]) -> None:
        self._lines, self._held = lines, list[str | None]()

    def __iter__(self) -> _Ahead:
        return self

    def __next__(self) -> str | None:
        return self._held.pop(0) if self._held else next(self._lines)

    def peek(self, number: int) -> str | None:
        """The line `number` lines ahead; None if it cannot be read, or at the end."""
        while len(self._held) <= number:
            try:
                self._held.append(next(self._lines))
            except StopIteration:
                return None
        return self._held[number]

    def skip(self, count: int) -> None:
        """Consume lines."""
        del self._held[:count]


def _lines(file: io.BufferedIOBase | io.BufferedReader, codec: str) -> Iterator[str | None]:
    """Lines with their line breaks; None for one that is not in the encoding, or too long."""
    start = file.tell()
    head = file.read(1 << 16)
    file.seek(start)
    if codec == "utf-16" or (b"\r" in head and b"\n" not in head):
        # Spreadsheets write tables in UTF-16, and those with line breaks of old Macintoshes; they are small.
        content = file.read().decode("utf-8-sig" if codec == "utf-8" else codec, "replace")
        yield from (None if "\ufffd" in each else each for each in io.StringIO(content, newline=None))
        return
    first = True
    while line := file.readline(MOST_LINE):
        whole = line.endswith(b"\n") or len(line) < MOST_LINE
        while not line.endswith(b"\n") and not whole and (rest := file.readline(MOST_LINE)):
            whole, line = False, rest
            if rest.endswith(b"\n"):
                break
        try:
            text = line.decode("utf-8") if whole else None
        except UnicodeDecodeError:
            text = None
        yield text.removeprefix("\ufeff") if text is not None and first else text
        first = False
