"""Changes of an infill: a unified text diff, and a page with before and after side by side."""

from __future__ import annotations

import difflib
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3kit.viewing.display import display, frame, marks_of
from cm3kit.viewing.document import document

STYLE = """
:root{color-scheme:light dark}
body{margin:1.5rem;font:15px/1.5 system-ui,sans-serif;color:#1b1b1b;background:#fff}
h2{margin:2rem 0 .5rem;font-size:1.1rem}.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem}
figure{margin:0}figcaption{color:#555}
iframe{width:100%;height:28rem;border:1px solid #bbb;background:#fff}
pre{padding:.75rem;border:1px solid #ddd;background:#fafafa;white-space:pre-wrap;word-break:break-word}
iframe{color-scheme:light}
del{background:#ffe0c2;text-decoration:line-through}ins{background:#cfe4ff;text-decoration:none}
@media(prefers-color-scheme:dark){body{color:#ecebe8;background:#171614}pre{background:#211f1c;border-color:#3a3833}
figcaption{color:#a5a198}iframe{border-color:#3a3833}del{background:#5c3310}ins{background:#16395f}}
@media(max-width:640px){body{margin:.75rem}.pair{grid-template-columns:1fr}}
"""
MAX_TOKEN = 400


def decode(page: bytes) -> str:
    """The page decoded as UTF-8 if valid, else as Latin-1."""
    try:
        return page.decode("utf-8")
    except UnicodeDecodeError:
        return page.decode("latin-1")


def unified(before: bytes, after: bytes, name: str = "page.html") -> str:
    """The unified diff of two pages, empty if they are equal; long lines such as data URLs are shortened."""
    lines = difflib.unified_diff(
        _lines(before), _lines(after), f"{name} (before)", f"{name} (after)", n=1, lineterm=""
    )
    return "".join(f"{_shorten(line)}\n" for line in lines)


def side_by_side(
    before: bytes,
    variants: Sequence[bytes],
    name: str = "page.html",
    base: Path | None = None,
    sources: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A self-contained HTML report: each variant beside its source page, and the changed text.

    The pages are untrusted: they are shown in sandboxed frames without scripts, and the report's
    policy loads nothing but pictures embedded in the page.

    Args:
        base: folder of the pictures that the pages name; they are embedded in the report.
        sources: `source` of each variant's recipe, by which what is new is marked.
    """
    title = f"Gaps of {name}, filled"
    old = display(before, base)
    told = [*sources, *({} for _ in variants[len(sources) :])]
    sections = "".join(
        _section(before, after, index, old, display(after, base, marks_of(told[index])))
        for index, after in enumerate(variants)
    )
    return document(title, f"<h1>{html.escape(title)}</h1>{sections}", STYLE)


def _section(before: bytes, after: bytes, index: int, old: str, new: str) -> str:
    changes = changed_lines(before, after)
    return (
        f'<h2>Variant {index}</h2><div class="pair">{_figure(old, "before")}{_figure(new, "after")}</div>'
        f"<pre>{changes}</pre>"
    )


def changed_lines(before: bytes, after: bytes) -> str:
    """The lines that differ as HTML, with deletions in `<del>` and insertions in `<ins>`."""
    return "".join(f"{change}\n" for change in _changes(decode(before), decode(after))) or "no change\n"


def _figure(copy: str, label: str) -> str:
    return f"<figure><figcaption>{label}</figcaption>{frame(copy, label)}</figure>"


def _changes(old: str, new: str) -> Iterator[str]:
    """The lines that differ, with deleted words in `<del>` and inserted ones in `<ins>`."""
    before, after = old.splitlines(), new.splitlines()
    for tag, i, j, k, m in difflib.SequenceMatcher(None, before, after).get_opcodes():
        if tag != "equal":
            yield _marked("\n".join(before[i:j]), "\n".join(after[k:m]))


def _marked(old: str, new: str) -> str:
    start = _common(old, new)
    end = min(_common(old[::-1], new[::-1]), len(old) - start, len(new) - start)
    removed, added = old[start : len(old) - end], new[start : len(new) - end]
    parts = [html.escape(_shorten(old[:start]))]
    parts += [f"<del>{html.escape(_shorten(removed))}</del>"] if removed else []
    parts += [f"<ins>{html.escape(_shorten(added))}</ins>"] if added else []
    return "".join([*parts, html.escape(_shorten(old[len(old) - end :]))])


def _common(one: str, other: str) -> int:
    """Length of the common prefix."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _lines(page: bytes) -> list[str]:
    return decode(page).splitlines()


def _shorten(text: str) -> str:
    half = MAX_TOKEN // 2
    return text if len(text) <= MAX_TOKEN else f"{text[:half]} … {text[-half:]}"
