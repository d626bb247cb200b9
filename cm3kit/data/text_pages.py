"""What builders of text corpora share: the split by page, rows as JSON lines, and a folder that appears whole."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cm3kit.json_lines import dump_jsonl
from cm3kit.targets import refuse_existing
from cm3kit_tokenizers.errors import OutputError

HELD = 51  # of 256: one page in five is held out


def split_of(page: str) -> str:
    """`test` or `train`, by the SHA-256 of a page's name: the same in every build."""
    return "test" if hashlib.sha256(page.encode()).digest()[0] < HELD else "train"


@contextmanager
def new_corpus(output: Path) -> Iterator[Path]:
    """A working folder that becomes `output` at the end; OutputError (`exists`) if that is there."""
    refuse_existing(output, "remove it or choose another folder")
    working = output.with_name(f".tmp-{output.name}")
    shutil.rmtree(working, ignore_errors=True)
    try:
        working.mkdir(parents=True)
        yield working
        working.rename(output)
    except OSError as error:
        shutil.rmtree(working, ignore_errors=True)
        raise OutputError(f"{output} cannot be written: {error.strerror}.", code="cannot_write") from error
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text(dump_jsonl(rows), encoding="utf-8")


def write_page(folder: Path, name: str, html: str) -> dict[str, Any]:
    """Write a page, and return its line of `manifest.jsonl`; `name` also says its split."""
    path = folder / "pages" / f"{name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return {"page": f"pages/{name}.html", "split": split_of(name), "weight": 1.0}
