"""The rows of a task: pages with one gap, and what belongs into it."""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cm3kit.data.corpus import listing
from cm3kit.evaluation.task_files import Task, TaskSpec
from cm3kit.json_lines import numbered_objects
from cm3kit.training.validation import spread
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError
from cm3kit_tokenizers.page import Page

_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class TaskRow:
    """One question.

    Attributes:
        number: its place among all rows of the data.
        fields: what the file says of it.
        right: the right answer.
        group: rows of one group are not independent of one another.
        candidates: answers to choose from; None where the answer is written.
    """

    number: int
    fields: Mapping[str, Any]
    right: str
    group: str
    candidates: tuple[str, ...] | None = None
    parse: Callable[[], Page] = field(default=lambda: Page.parse(b""), repr=False, compare=False)

    @cached_property
    def page(self) -> Page:
        """The page with its gap."""
        return self.parse()


@dataclass(frozen=True)
class TaskData:
    """Rows of a task: those that are asked, and those that baselines may know.

    Attributes:
        skipped: rows of the split that are none, by reason.
        sha256: of the file of rows, or of the list of pages with what they hold.
    """

    task: Task
    folder: Path
    rows: Sequence[TaskRow]
    known: Sequence[TaskRow]
    skipped: Mapping[str, int]
    sha256: str

    def picture(self, row: TaskRow) -> Path:
        """The file of a row's picture; ConfigError (`bad_config`) if the task names none."""
        if not self.task.spec.picture:
            raise ConfigError(f"task {self.task.name} names no picture; add `picture:`.", code="bad_config")
        return self.folder / filled(self.task.spec.picture, row.fields, escape=False)


def read_data(task: Task, folder: Path | None, limit: int | None) -> TaskData:
    """The rows of a task, at most `limit` of them, spread over those that there are.

    Raises:
        DataError: there is no such data (`no_file`), or a row is wrong (`bad_data`).
        ConfigError: a template names a field that rows do not have (`bad_config`).
    """
    spec, place = task.spec, folder or Path(task.spec.data)
    if not place.is_dir():
        raise DataError(
            f"task {task.name}: no folder {place}; build the data (docs/evaluation.md), or name its folder with"
            " --data.",
            code="no_file",
        )
    found, skipped, sha256 = _pages(place, spec) if spec.source == "pages" else _rows(place, spec)
    rows = [row for row in found if not spec.split or row.fields.get("split") in spec.split]
    known = [row for row in found if row.fields.get("split") in spec.known]
    if not rows:
        why = f" ({', '.join(skipped)})" if skipped else ""
        raise DataError(
            f"task {task.name}: {place} has no row to ask of the split {', '.join(spec.split) or 'all'}{why}.",
            code="bad_data",
        )
    chosen = [rows[number] for number in spread(len(rows), limit or len(rows))]
    return TaskData(task, place, chosen, known, dict(skipped), sha256)


def _rows(folder: Path, spec: TaskSpec) -> tuple[list[TaskRow], Counter[str], str]:
    path, out, skipped = folder / spec.file, list[TaskRow](), Counter[str]()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", code="no_file") from error
    for number, fields in numbered_objects(data, path):
        right = filled(spec.answer, fields, escape=False).strip()
        if not right:
            skipped["no answer"] += 1
            continue
        out.append(_row(number - 1, fields, right, folder, spec))
    return out, skipped, hashlib.sha256(data).hexdigest()


def _row(number: int, fields: Mapping[str, Any], right: str, folder: Path, spec: TaskSpec) -> TaskRow:
    candidates: tuple[str, ...] | None = None
    if spec.candidates:
        given = fields.get(spec.candidates)
        if not isinstance(given, list):
            raise DataError(f"row {number} has no list {spec.candidates!r}.", code="bad_data")
        candidates = tuple(map(str, given))
    source = filled(spec.prompt, fields)

    def parse() -> Page:
        return Page.parse(f'<meta charset="utf-8">{source}'.encode(), folder)

    return TaskRow(number, fields, right, str(fields.get(spec.group, number)), candidates, parse)


def _pages(folder: Path, spec: TaskSpec) -> tuple[list[TaskRow], Counter[str], str]:
    """A row for each page that has the element; which of several is chosen by the page's name."""
    out, skipped, digest = list[TaskRow](), Counter[str](), hashlib.sha256()
    for number, each in enumerate(listing(folder)):
        name = each.path.relative_to(folder).as_posix()
        if each.split not in (*spec.split, *spec.known):
            continue
        try:
            data = each.path.read_bytes()
            digest.update(hashlib.sha256(data).digest())
            found = _missing(Page.parse(data, each.path.parent), spec.select, name)
        except OSError as error:
            raise DataError(f"{each.path} cannot be read: {error.strerror}.", code="no_file") from error
        except Cm3kitError as error:
            # Not every page has such an element.
            reason = str(error) if error.code != "bad_selector" else f"nothing for {spec.select!r}"
            skipped[reason] += each.split in spec.split
            continue
        if found is None:
            skipped["no words there"] += each.split in spec.split
            continue
        page, right = found
        fields = {"page": name, "split": each.split}
        out.append(TaskRow(number, fields, right, name.partition(".")[0], None, lambda page=page: page))  # type: ignore[misc]
    return out, skipped, digest.hexdigest()


def _missing(page: Page, select: str, name: str) -> tuple[Page, str] | None:
    """The page without the words of one element, and these words."""
    gaps, words = page.select(select).gaps, []
    for gap in gaps:
        source = page.data[gap.start : gap.end].decode(page.codec, "replace")
        text = " ".join(html.unescape(re.sub(r"<[^>]*>", "", source)).split())
        if text and "<img" not in source:
            words.append((gap, text))
    if not words:
        return None
    gap, text = words[hashlib.sha256(name.encode()).digest()[0] % len(words)]
    return replace(page, gaps=(replace(gap, index=0),)), text


def filled(template: str, fields: Mapping[str, Any], escape: bool = True) -> str:
    """A template with the fields of a row; ConfigError (`bad_config`) if it names one that is not there."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in fields:
            raise ConfigError(
                f"the task names {{{name}}}, and rows have {', '.join(fields)}.", code="bad_config"
            )
        text = "" if fields[name] is None else str(fields[name])
        return text if not escape or name.endswith("_html") else html.escape(text)

    return _FIELD.sub(value, template)
