"""Pages to train on for the tasks of text: the entity pages and the descriptions in one corpus, of short documents.

Pages of documentation are many windows long, and a slice of one begins anywhere; so each of their paragraphs that has
links becomes a page of its own, in the form in which the tasks ask: words and links, and no other markup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from cm3kit.data.corpus import Listed, listing, read_nodes
from cm3kit.data.entity_pages import Block, blocks
from cm3kit.data.text_pages import new_corpus, write_page, write_rows
from cm3kit.json_lines import numbered_objects
from cm3kit_tokenizers.document import Text
from cm3kit_tokenizers.errors import DataError

ENTITIES, SUMMARIES = "entity-pages", "summaries"
SHORT = 2000  # characters of a page that is left whole
SHARES = {"paragraphs": 0.5, "entries": 0.15, "descriptions": 0.35}
"""Of the characters that training sees."""
SPLITS = {"train": "train", "test": "rest"}  # what tasks ask about is held out

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Made:
    """A page with its kind, its split, and the characters of its words."""

    kind: str
    split: str
    html: str
    characters: int


def build(packages: Path, output: Path, report: Report = lambda done, total: None) -> dict[str, Any]:
    """Build the corpus from those of `entity-pages` and `summaries`, and return its figures.

    Args:
        packages: the folder in which both lie, under these names.
        output: a folder that does not exist; it gets `pages/`, `manifest.jsonl` (page, split, weight) and
            `LICENSES.md`.
        report: called with (documents read, documents in all).

    Raises:
        DataError: one of them is missing or damaged. OutputError: `output` exists or cannot be written.
    """
    pages, rows = _pages(packages / ENTITIES), _rows(packages / SUMMARIES)
    skipped: Counter[str] = Counter()
    with new_corpus(output) as working:
        made: list[tuple[_Made, dict[str, Any]]] = []
        for each in _documents(pages, rows, skipped, report):
            name = f"{each.kind}/{len(made) // 1000:03}/{len(made):06}"
            made.append((each, write_page(working, name, each.html)))
        weights = _weights([each for each, _ in made])
        lines = [
            {**line, "split": each.split, "weight": round(weights.get(each.kind, 1.0), 6)}
            for each, line in made
        ]
        write_rows(working / "manifest.jsonl", lines)
        (working / "LICENSES.md").write_text(_licences(packages), encoding="utf-8")
    counts = Counter(each.kind for each, _ in made)
    held = sum(each.split != "train" for each, _ in made)
    return {"pages": len(made), **counts, "held out": held, "skipped": dict(skipped)}


def _pages(folder: Path) -> list[Listed]:
    if not (folder / "manifest.jsonl").is_file():
        raise _missing(folder)
    return listing(folder)


def _rows(folder: Path) -> list[dict[str, Any]]:
    try:
        data = (folder / "rows.jsonl").read_bytes()
    except OSError as error:
        raise _missing(folder) from error
    return [row for _, row in numbered_objects(data, folder / "rows.jsonl")]


def _missing(folder: Path) -> DataError:
    return DataError(
        f"{folder} is no corpus of {folder.name}; build it there: cm3kit data build {folder.name} -o {folder}.",
        code="no_file",
    )


def _documents(
    pages: Sequence[Listed], rows: Sequence[Mapping[str, Any]], skipped: Counter[str], report: Report
) -> Iterator[_Made]:
    total = len(pages) + len(rows)
    for done, page in enumerate(pages, 1):
        yield from _of_page(page, skipped)
        report(done, total)
    for done, row in enumerate(rows, len(pages) + 1):
        text, summary, split = (str(row.get(name, "")) for name in ("text", "summary", "split"))
        if split not in SPLITS or not text or not summary:
            raise DataError(f"row {done - len(pages)} has no text, summary and split.", code="bad_data")
        html = f"<title>{escape(summary, quote=False)}</title><p>{escape(text, quote=False)}</p>"
        yield _Made("descriptions", SPLITS[split], html, len(text) + len(summary))
        report(done, total)


def _of_page(page: Listed, skipped: Counter[str]) -> Iterator[_Made]:
    """A short page as it is, or the paragraphs of a long one that have links."""
    if page.split not in SPLITS:
        raise DataError(f"{page.path} is of the split {page.split!r}, not train or test.", code="bad_data")
    nodes = read_nodes(page.path)
    size = sum(len(node.content) for node in nodes if isinstance(node, Text))
    if size <= SHORT:
        yield _Made("entries", SPLITS[page.split], page.path.read_text(encoding="utf-8"), size)
        return
    for block in blocks(nodes):
        if block.links:
            size = len(block.words) + sum(len(link.title) for link in block.links)
            yield _Made("paragraphs", SPLITS[page.split], paragraph(block), size)
        elif block.words.strip():
            skipped["paragraphs without links"] += 1


def paragraph(block: Block) -> str:
    """The words of a paragraph with its links, as `<p>`."""
    out, place = [], 0
    for link in block.links:
        title, mention = escape(link.title), escape(link.mention, quote=False)
        before = escape(block.words[place : link.start], quote=False)
        # A link without words, of which minimal HTML has none, would be written as one.
        out += [before, f'<a title="{title}">{mention}</a>' if link.mention else ""]
        place = link.start + len(link.mention)
    return f"<p>{''.join(out)}{escape(block.words[place:], quote=False)}</p>"


def _weights(made: Sequence[_Made]) -> dict[str, float]:
    """Of a page of each kind, so that pages drawn by them have `SHARES` of characters; the heaviest weighs 1."""
    sizes: Counter[str] = Counter()
    for each in made:
        sizes[each.kind] += each.characters if each.split == "train" else 0
    raw = {kind: share / sizes[kind] for kind, share in SHARES.items() if sizes[kind]}
    return {kind: weight / max(raw.values()) for kind, weight in raw.items()}


def _licences(packages: Path) -> str:
    """What the two corpora say of themselves."""
    parts = [
        (packages / name / "LICENSES.md").read_text(encoding="utf-8")
        for name in (ENTITIES, SUMMARIES)
        if (packages / name / "LICENSES.md").is_file()
    ]
    return "\n".join(
        [*parts, "Long pages are cut into the paragraphs that have links; what is held out is `rest`.\n"]
    )
