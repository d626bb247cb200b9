"""The prompts of reinforcement learning: those of a file, or pages with gaps."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cm3kit.fill.fillers import Task
from cm3kit.fill.pages import read_page
from cm3kit.fill.prompts import MAX_BYTES, read_prompts
from cm3kit.fill.row_files import read_raw
from cm3kit_tokenizers.errors import Cm3kitError, DataError
from cm3kit_tokenizers.page import Page

RLTaskName = Literal["image", "text", "caption", "document", "pair", "infill"]
OWN = ("prompt", "page", "html", "answer", "answers")


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt.

    Attributes:
        name: what it is called in messages and shown to rewards: the words, or the name of the page.
        task: what is made of it; None for a page.
        prompt: words, or the path of a picture.
        page: a page with gaps.
        answers: the original content of the gaps, or the right answers; None where unknown.
        meta: other columns of its row, for rewards.
    """

    name: str
    task: Task | None = None
    prompt: str | Path = ""
    page: Page | None = None
    answers: tuple[str | None, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for the same prompt."""
        told = [self.name, str(self.prompt), self.page.data.decode("latin-1") if self.page else ""]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def read_items(source: Path, task: RLTaskName, hold_out: Sequence[str] = ()) -> list[Item]:
    """The prompts of a source.

    A file holds a prompt a line (.txt), or rows (.csv, .parquet, .jsonl), which may have `answer` (or `answers`, one
    for each gap), `page` (a path beside the file), `html` or `name` instead of `prompt`, and other columns. A folder
    holds pages with gaps. What the selectors `hold_out` match becomes a gap too, with its content as the answer.

    Raises:
        DataError: there is nothing, or a row is malformed (its number is named).
        PageError: a page cannot be read, or has no gap.
    """
    if source.is_dir():
        if task != "infill":
            raise DataError(
                f"{source} is a folder of pages, and the task is {task!r}; use task infill, or a file of prompts.",
                code="bad_data",
            )
        found = [
            _page(str(path.relative_to(source)), read_page(str(path), hold_out))
            for path in sorted(source.rglob("*.html"))
        ]
    elif source.suffix.lower() != ".txt":
        found = list(_rows(source, task, hold_out))
    elif task == "infill":
        raise DataError(
            f"{source}: pages with gaps are a folder, or rows of a .jsonl, .csv or .parquet file with page or html.",
            code="bad_data",
        )
    else:
        found = [_worded(str(each.content), task, source) for each in read_prompts(source)]
    if not found:
        raise DataError(f"{source} holds no prompt.", code="empty_file")
    return found


def split(items: Sequence[Item], share: float) -> tuple[list[Item], list[Item]]:
    """Training and held-out items: about that share, and the same ones whatever other items there are."""
    held = [each for each in items if int(each.key[:8], 16) < share * 2**32]
    if share and not held and len(items) > 1:
        held = [min(items, key=lambda each: each.key)]
    keys = {each.key for each in held}
    return [each for each in items if each.key not in keys], held


def _worded(words: str, task: RLTaskName, source: Path, **more: Any) -> Item:
    assert task != "infill"
    return Item(words, task, source.parent / words if task == "caption" else words, **more)


def _rows(source: Path, task: RLTaskName, hold_out: Sequence[str]) -> Iterator[Item]:
    for place, row in read_raw(source, MAX_BYTES)[1]:
        if isinstance(row, Cm3kitError):
            raise DataError(f"{source} {row.args[0]}", code=row.code)
        # Tables have a cell in every column; in JSON lines a null is said.
        table = source.suffix.lower() != ".jsonl"
        told = {name: value for name, value in row.items() if not table or value is not None}
        yield _row(told, task, source, hold_out, f"{source} {place}")


def _row(row: dict[str, Any], task: RLTaskName, source: Path, hold_out: Sequence[str], where: str) -> Item:
    meta = {name: value for name, value in row.items() if name not in OWN}
    answers = _answers(row, where)
    wanted: tuple[str, ...] = ("page", "html") if task == "infill" else ("prompt",)
    # The rows of a picture dictionary (entries.jsonl, things.jsonl) have names.
    wanted = ("name",) if task != "infill" and "prompt" not in row and "name" in row else wanted
    given = [(name, row[name]) for name in wanted if isinstance(row.get(name), str) and row[name].strip()]
    if len(given) != 1:
        raise DataError(f"{where} needs one of: {', '.join(wanted)} (text).", code="bad_data")
    ((name, value),) = given
    if task != "infill":
        return _worded(value, task, source, answers=answers, meta=meta)
    try:
        if name == "page":
            page = read_page(str(source.parent / value), hold_out)
        else:
            page = Page.parse(value.encode(), source.resolve().parent)
            for each in hold_out:
                page = page.select(each)
    except Cm3kitError as error:
        raise DataError(f"{where}: {error.args[0]}", code="bad_data") from error
    if not page.gaps:
        raise DataError(
            f"{where}: the page has no gap; write <mask>, or hold something out.", code="bad_data"
        )
    return _page(value if name == "page" else where.rsplit("/", 1)[-1], page, answers, meta)


def _answers(row: dict[str, Any], where: str) -> tuple[str | None, ...]:
    if "answer" in row and "answers" in row:
        raise DataError(f"{where} has both answer and answers; leave one out.", code="bad_data")
    found = row.get("answers", [row["answer"]] if "answer" in row else [])
    if not isinstance(found, list) or any(each is not None and not isinstance(each, str) for each in found):
        raise DataError(f"{where}: answers are texts, or null where one is not known.", code="bad_data")
    return tuple(found)


def _page(
    name: str, page: Page, answers: tuple[str | None, ...] = (), meta: Mapping[str, Any] | None = None
) -> Item:
    if answers and len(answers) != len(page.gaps):
        raise DataError(
            f"{name} has {len(page.gaps)} gaps and {len(answers)} answers; give one for each.",
            code="bad_data",
        )
    return Item(name, None, page=page, answers=answers or tuple(_stood(page)), meta=meta or {})


def _stood(page: Page) -> list[str | None]:
    """The original content of each gap; None for pictures, and for gaps that are only marked."""
    out: list[str | None] = []
    for gap in page.gaps:
        text = page.data[gap.start : gap.end].decode(page.codec, "replace").strip()
        missing = gap.kind == "image" or not text or text.startswith("<mask")
        out.append(None if missing else html.unescape(text))
    return out
