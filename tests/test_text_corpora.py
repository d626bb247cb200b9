"""Corpora of entity pages and summaries, built from packages in miniature."""

from __future__ import annotations

import gzip
import json
from html import escape
from pathlib import Path
from typing import Any

import pytest

from cm3kit.data import entity_pages, summaries, task_pages
from cm3kit.data.builders import builder
from cm3kit.data.corpus import Listed, listing, read_nodes
from cm3kit.data.text_pages import split_of
from cm3kit_tokenizers import Text
from cm3kit_tokenizers.errors import DataError, OutputError

PAGE = """<!DOCTYPE html><html><head><title>str &#8212; Python</title></head>
<body><a title="General Index" href="g">index</a>
<div class="body" role="main"><h1>Text<a class="headerlink" href="#t" title="Permalink to this heading">¶</a></h1>
<p>Call <a class="reference internal" href="#s" title="str.split"><code><span>split()</span></code></a> or
<a href="http://x" title="bytes.split">split()</a> &amp; see <a href="http://y">there</a>.</p>
<ul><li><p>Use <a title="os.path">os.path</a></p></li></ul></div>
<div class="sphinxsidebar"><a title="nowhere" href="h">here</a></div></body></html>"""


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def names(split: str, count: int) -> list[str]:
    found = (f"p{number}" for number in range(999))
    return [each for each in found if split_of(f"python3/html/{each}") == split][:count]


@pytest.fixture
def documentation(tmp_path: Path) -> Path:
    html = tmp_path / "packages/usr/share/doc/python3/html"
    html.mkdir(parents=True)
    for name in (*names("train", 2), *names("test", 1)):
        (html / f"{name}.html").write_text(PAGE, encoding="utf-8")
    (html / "genindex.html").write_text(PAGE, encoding="utf-8")
    (html / names("train", 3)[2]).with_suffix(".html").write_text(
        "<p>no body of Sphinx</p>", encoding="utf-8"
    )
    # Debian's package also has its folder under another name.
    other = tmp_path / "packages/usr/share/doc/python3-doc"
    other.mkdir()
    (other / "html").symlink_to("../python3/html")
    foldoc = tmp_path / "packages/usr/share/dictd"
    foldoc.mkdir()
    lines = [
        "00-database-short",
        "     The Dictionary",
        "bug",
        "",
        "   An error.  See {Debugging} and",
        "   {no such thing}.",
        "",
        "debugging",
        "",
        "   To look for a {bug}.",
        "",
    ]
    text = "\n".join(lines)
    (foldoc / "foldoc.dict.dz").write_bytes(gzip.compress(text.encode()))
    return tmp_path / "packages"


def test_entity_pages_have_a_row_for_each_link(documentation: Path, tmp_path: Path) -> None:
    figures = builder("entity-pages")(documentation, tmp_path / "out", lambda done, total: None, 1)
    rows = rows_of(tmp_path / "out")
    assert figures["links"] == len(rows) == 9 and figures["skipped"] == {"no body": 1}
    assert {row["split"] for row in rows} == {"train", "test"} and figures["held out"] == 3
    first, second, third = rows[:3]
    assert (
        first["left"].split() == ["Call"] and first["mention"] == "split()" and first["title"] == "str.split"
    )
    assert first["right"].split() == ["or", "split()", "&", "see", "there."]
    assert second["left"].split() == ["Call", "split()", "or"] and second["title"] == "bytes.split"
    assert first["candidates"] == second["candidates"] == ["bytes.split", "str.split"]
    assert (
        third["mention"] == "os.path" and third["candidates"] == ["os.path"] and "Call" not in third["left"]
    )
    assert (tmp_path / "out/titles.txt").read_text() == "bytes.split\nos.path\nstr.split\n"
    assert "PSF" in (tmp_path / "out/LICENSES.md").read_text()


def test_entity_pages_are_pages_to_train_on(documentation: Path, tmp_path: Path) -> None:
    entity_pages.build(documentation, tmp_path / "out")
    pages = {each.path.relative_to(tmp_path / "out").as_posix(): each for each in listing(tmp_path / "out")}
    assert len(pages) == 5 and {each.split for each in pages.values()} == {"train", "test"}
    for each in pages.values():
        words = "".join(node.content for node in read_nodes(each.path) if isinstance(node, Text))
        assert "¶" not in words and "General Index" not in words and words
    foldoc = [path.read_text() for path in sorted((tmp_path / "out/pages/foldoc").glob("*.html"))]
    assert '<a title="debugging">Debugging</a>' in foldoc[0] and "{" not in foldoc[0]
    assert foldoc[0].count("<a") == 1 and '<a title="bug">bug</a>' in foldoc[1]


def test_long_paragraphs_are_cut_between_words() -> None:
    from cm3kit_tokenizers.page import Page

    words = "word " * 200
    nodes = Page.parse(f'<p>{words}<a title="t">mention</a> {words}</p>'.encode()).nodes()
    (row,) = entity_pages.rows_of(entity_pages.plain_links(nodes))
    assert set(row["left"].split()) == set(row["right"].split()) == {"word"} and row["left"].endswith("word ")
    assert 300 < len(row["left"]) <= entity_pages.LEFT and 100 < len(row["right"]) <= entity_pages.RIGHT


LIST = """Package: one
Description-md5: 0
Description-en: tool that does a thing
 This is a tool that does a thing, and it does it
 rather well for all who want it.
 .
 It has two sides:
  * the left side
  * the right side

Package: one-copy
Description-md5: 0
Description-en: tool that does a thing
 This is a tool that does a thing, and it does it
 rather well for all who want it.
 .
 It has two sides:
  * the left side
  * the right side

Package: two
Description-en: transitional package
 This is a transitional package for one that can be removed at any time.

Package: three
Description-en: short
 Short.
"""


@pytest.mark.parametrize("suffix,pack", [("", bytes), (".gz", gzip.compress)])
def test_summaries_are_pairs_of_descriptions(tmp_path: Path, suffix: str, pack: Any) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / f"lists/debian_i18n_Translation-en{suffix}").write_bytes(pack(LIST.encode()))
    figures = builder("summaries")(tmp_path / "lists", tmp_path / "out", lambda done, total: None, 1)
    assert figures["dropped"] == {"duplicate": 1, "transitional": 1, "too short": 1}
    (row,) = rows_of(tmp_path / "out")
    first = "This is a tool that does a thing, and it does it rather well for all who want it."
    assert row["text"].split("\n") == [first, "It has two sides:", "* the left side", "* the right side"]
    assert row["summary"] == "tool that does a thing" and row["split"] == split_of(first)
    (page,) = listing(tmp_path / "out")
    assert page.split == row["split"] and "<title>tool that does a thing</title>" in page.path.read_text()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    for name, word in (("entity-pages", "python3.11-doc"), ("summaries", "Translation-en")):
        with pytest.raises(DataError, match=word):
            builder(name)(tmp_path, tmp_path / "out", lambda done, total: None, 1)
    (tmp_path / "x_Translation-en.xz").write_bytes(b"not packed")
    with pytest.raises(DataError, match="cannot be read"):
        summaries.build(tmp_path, tmp_path / "out")
    (tmp_path / "x_Translation-en.xz").unlink()
    (tmp_path / "x_Translation-en").write_text(LIST)
    summaries.build(tmp_path, tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        summaries.build(tmp_path, tmp_path / "out")


def test_pages_of_the_tasks_are_short_and_hold_out_what_is_asked(documentation: Path, tmp_path: Path) -> None:
    long = f"{PAGE.split('<ul>')[0]}<p>{'word ' * 500}</p></div>"
    path = documentation / f"usr/share/doc/python3/html/{names('train', 1)[0]}.html"
    path.write_text(long, encoding="utf-8")
    entity_pages.build(documentation, tmp_path / "entity-pages")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/x_Translation-en").write_text(LIST)
    summaries.build(tmp_path / "lists", tmp_path / "summaries")
    figures = builder("task-pages")(tmp_path, tmp_path / "out", lambda done, total: None, 1)
    assert (figures["paragraphs"], figures["entries"], figures["descriptions"]) == (1, 4, 1)
    assert figures["skipped"] == {"paragraphs without links": 3}  # the title, the heading, and the words
    found: dict[str, list[Listed]] = {}
    for each in listing(tmp_path / "out"):
        found.setdefault(each.path.parts[-3], []).append(each)
    (cut,) = found["paragraphs"]
    link = '<a title="{}.split">split()</a>'.format
    said = cut.path.read_text(encoding="utf-8")
    assert said == f"<p>Call {link('str')} or {link('bytes')} &amp; see there.</p>"
    # In the form in which the task asks, where other links are words.
    row = next(row for row in rows_of(tmp_path / "entity-pages") if row["page"].endswith(path.stem))
    left, right = (escape(row[name], quote=False) for name in ("left", "right"))
    assert said.replace(link("bytes"), "split()") == f"<p>{left}{link('str')}{right}</p>"
    (told,) = found["descriptions"]
    assert told.path.read_text(encoding="utf-8").startswith("<title>tool that does a thing</title><p>This is")
    names_of = {"train": "train", "test": "rest"}
    assert told.split == names_of[rows_of(tmp_path / "summaries")[0]["split"]]
    assert sum(each.split == "rest" for each in found["entries"]) >= 1
    for name in ("PSF", "Debian"):
        assert name in (tmp_path / "out/LICENSES.md").read_text()
    with pytest.raises(DataError, match="data build entity-pages"):
        builder("task-pages")(tmp_path / "lists", tmp_path / "no", lambda done, total: None, 1)


def test_kinds_of_pages_weigh_by_their_shares() -> None:
    made = [
        task_pages._Made(kind, split, "", size)
        for kind, split, size in (
            ("paragraphs", "train", 100), ("paragraphs", "train", 300), ("paragraphs", "rest", 900),
            ("entries", "train", 50), ("descriptions", "train", 10), ("descriptions", "train", 30),
        )
    ]  # fmt: skip
    weights = task_pages._weights(made)
    seen = {
        kind: sum(
            each.characters * weights[kind] for each in made if (each.kind, each.split) == (kind, "train")
        )
        for kind in task_pages.SHARES
    }
    total = sum(seen.values())
    assert {kind: size / total for kind, size in seen.items()} == pytest.approx(task_pages.SHARES)
    assert max(weights.values()) == 1
