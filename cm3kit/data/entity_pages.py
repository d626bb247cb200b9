"""Pages full of links that name what they mean, and one row for each link: entity disambiguation (GENRE, CM3 sec. 4.4).

Built from Debian packages: python3.*-doc, whose links have CM3's very form, `<a title="str.split">split()</a>`, and,
where it is there, dict-foldoc, whose entries become pages too. Pages are split by the SHA-256 of their names.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from cm3kit.data.text_pages import new_corpus, split_of, write_page, write_rows
from cm3kit_tokenizers.document import Markup, Node, Text
from cm3kit_tokenizers.errors import DataError, PageError
from cm3kit_tokenizers.html.minimal import render
from cm3kit_tokenizers.page import Page

LEFT, RIGHT = 400, 200
"""Characters of a row's paragraph that are kept on either side of its mention."""
BODY, SIDEBAR = re.compile(rb'<div class="body"[^>]*>'), b'<div class="sphinxsidebar"'
# Pages of nothing but links.
INDICES = ("genindex", "py-modindex", "search", "contents")
INLINE = {"a", "code", "em", "strong", "b", "i", "span", "sub", "sup", "abbr"}


@dataclass(slots=True)
class Link:
    """A link by its title, its words, and where these begin among those of the paragraph."""

    title: str
    start: int
    mention: str = ""


@dataclass(slots=True)
class Block:
    """The words of one paragraph, and its links by where they stand."""

    words: str = ""
    links: list[Link] = field(default_factory=list)


def build(
    packages: Path, output: Path, report: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Build the corpus from unpacked packages and return its figures.

    Args:
        packages: the folder that the packages were unpacked into (it holds `usr/share`).
        output: a folder that does not exist; it gets `pages/`, `manifest.jsonl` (page, split, weight), `rows.jsonl`
            (page, split, left, mention, right, title, candidates), `titles.txt` and `LICENSES.md`.
        report: called with (pages done, pages in all).

    Raises:
        DataError: there is no documentation. OutputError: `output` exists or cannot be written.
    """
    documents = _documents(packages)
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    skipped: Counter[str] = Counter()
    with new_corpus(output) as working:
        for done, (name, path) in enumerate(documents, 1):
            nodes = _nodes(path, skipped)
            if nodes is not None:
                lines.append(write_page(working, name, render(nodes, lambda picture: "")))
                rows += [{"page": name, "split": split_of(name), **row} for row in rows_of(nodes)]
            report(done, len(documents))
        entries = read_foldoc(packages)
        lines += [write_page(working, f"foldoc/{n:05}", html) for n, html in enumerate(foldoc_pages(entries))]
        titles = sorted({row["title"] for row in rows})
        rows = with_candidates(rows, titles)
        write_rows(working / "rows.jsonl", rows)
        write_rows(working / "manifest.jsonl", lines)
        (working / "titles.txt").write_text("".join(f"{title}\n" for title in titles), encoding="utf-8")
        (working / "LICENSES.md").write_text(LICENSES, encoding="utf-8")
    held = [row for row in rows if row["split"] == "test"]
    return {
        "pages": len(lines), "entries of FOLDOC": len(entries), "links": len(rows), "titles": len(titles),
        "held out": len(held), "with a choice": sum(len(row["candidates"]) > 1 for row in held),
        "skipped": dict(skipped),
    }  # fmt: skip


def _documents(packages: Path) -> list[tuple[str, Path]]:
    named = packages.glob("usr/share/doc/python3*/html")
    roots = sorted(path for path in named if path.is_dir() and not path.is_symlink())
    found = [
        (path.relative_to(root.parent.parent).with_suffix("").as_posix(), path)
        for root in roots
        for path in sorted(root.rglob("*.html"))
        if not path.name.startswith(INDICES) and not path.is_symlink()
    ]
    if not found:
        raise DataError(
            f"{packages} holds no usr/share/doc/python3*/html; unpack the package python3.11-doc there"
            " (apt-get download, dpkg -x).",
            code="no_file",
        )
    return found


def _nodes(path: Path, skipped: Counter[str]) -> list[Node] | None:
    """The body of a page of Sphinx as minimal HTML, links with their titles alone; None where there is none."""
    data = path.read_bytes()
    begun = BODY.search(data)
    if begun is None:
        skipped["no body"] += 1
        return None
    end = data.find(SIDEBAR, begun.end())
    title = re.search(rb"<title>.*?</title>", data, re.S)
    body = data[begun.end() : end if end >= 0 else len(data)]
    page = b'<meta charset="utf-8">' + (title[0] if title else b"") + body
    try:
        return plain_links(Page.parse(page).nodes(usable=lambda address: False))
    except PageError as error:
        skipped[error.code] += 1
        return None


def plain_links(nodes: Sequence[Node]) -> list[Node]:
    """Nodes without permalinks, and whose links have no address: a title and words, or words alone."""
    out: list[Node] = []
    place = 0
    while place < len(nodes):
        node = nodes[place]
        if node != Markup("<a"):
            out.append(node)
            place += 1
            continue
        head = nodes.index(Markup(">"), place)
        last = nodes.index(Markup("</a>"), head)
        words, attributes = list(nodes[head + 1 : last]), nodes[place + 1 : head]
        place = last + 1
        if "".join(each.content for each in words if isinstance(each, Text)).strip() == "¶":
            continue
        title = _title(attributes)
        out += [*_opening(title), *words, Markup("</a>")] if title and words else words
    return out


def _title(attributes: Sequence[Node]) -> str:
    """The value of `title` among the nodes of an opening tag."""
    for name, value in pairwise(attributes):
        if name == Markup(' title="') and isinstance(value, Text):
            return value.content
    return ""


def _opening(title: str) -> list[Node]:
    return [Markup("<a"), Markup(' title="'), Text(title), Markup('"'), Markup(">")]


def rows_of(nodes: Sequence[Node]) -> Iterator[dict[str, str]]:
    """A row for each link that has a title: the words of its paragraph before and after it; other links are words."""
    for block in blocks(nodes):
        for link in block.links:
            left, right = block.words[: link.start], block.words[link.start + len(link.mention) :]
            # What stands around is cut between words.
            left = left if len(left) <= LEFT else left[-LEFT:].partition(" ")[2]
            right = right if len(right) <= RIGHT else right[:RIGHT].rpartition(" ")[0]
            if link.mention.strip():
                yield {"left": left, "mention": link.mention, "right": right, "title": link.title}


def blocks(nodes: Sequence[Node]) -> Iterator[Block]:
    """Runs of words between elements that begin a line."""
    block, attribute = Block(), ""
    opened: Link | None = None
    for node in nodes:
        if isinstance(node, Text):
            if attribute == ' title="':
                opened = Link(node.content, len(block.words))
            elif not attribute:
                block.words += node.content
        elif isinstance(node, Markup):
            if node.piece.endswith('="') or node.piece == '"':
                attribute = node.piece if node.piece != '"' else ""
            elif node.piece == "</a>" and opened is not None:
                opened.mention = block.words[opened.start :]
                block.links.append(opened)
                opened = None
            elif node.piece != ">" and node.piece.strip("</>") not in INLINE:
                yield block
                block, opened = Block(), None
    yield block


def with_candidates(
    rows: Sequence[Mapping[str, Any]], titles: Sequence[str]
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows with the titles that a mention may mean, by what is known of other pages.

    These are the titles that end in the mention, and those that pages of the training split link it to.
    """
    endings: dict[str, set[str]] = defaultdict(set)
    for title in titles:
        parts = title.split(".")
        for start in range(len(parts)):
            endings[".".join(parts[start:])].add(title)
    linked: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["split"] == "train":
            linked[row["mention"]].add(row["title"])
    return [
        {**row, "candidates": sorted(endings[row["mention"].removesuffix("()")] | linked[row["mention"]])}
        for row in rows
    ]


def read_foldoc(packages: Path) -> list[tuple[str, str]]:
    """Headwords of FOLDOC with their texts; none where the package is not there."""
    path = packages / "usr/share/dictd/foldoc.dict.dz"
    if not path.is_file():
        return []
    text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        # A reference that is broken at a line's end may go on at the margin.
        if line and not line.startswith((" ", "\t", "00-")) and not set("{}") & set(line):
            found.append((line.strip(), []))
        elif found and line.strip():
            found[-1][1].append(line.strip())
    return [(word, " ".join(lines)) for word, lines in found if lines]


def foldoc_pages(entries: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Entries as pages; references to other entries are links with the title of these, others are words."""
    known = {word.lower(): word for word, _ in entries}

    def linked(match: re.Match[str]) -> str:
        title = known.get(" ".join(match[1].split()).lower())
        return f'<a title="{escape(title)}">{match[1]}</a>' if title else match[1]

    for word, text in entries:
        body = re.sub(r"\{([^{}]+)\}", linked, escape(text, quote=False))
        yield f"<title>{escape(word)}</title><h1>{escape(word)}</h1><p>{body}</p>"


LICENSES = """# Where this corpus comes from

- Pages and links: the documentation of Python (Debian's python3.*-doc), © 2001 Python Software Foundation; PSF License
  Agreement (PSF-2.0), examples also under 0BSD.
- Entries below `pages/foldoc`, if there are any: the Free On-line Dictionary of Computing, http://foldoc.org/, Editor
  Denis Howe; GNU Free Documentation License 1.1 or later.

Pages are changed: reduced to minimal HTML, links to their titles. One page in five is held out (`test`): a name whose
SHA-256 begins with a byte below 51.
"""
