"""The picture dictionary: a corpus of small HTML pages about some 3,660 named pictures.

Built from ordinary Debian packages: fonts-noto-color-emoji (pictures), unicode-data (names, groups),
unicode-cldr-core (keywords) and wordnet-base (definitions, is-a links).
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cm3kit.data import forms
from cm3kit.data.names import Name, Split, read_keywords, read_names, splits
from cm3kit.data.noto import BitmapFont, on_white
from cm3kit.data.wordnet import WordNet
from cm3kit.json_lines import numbered_objects
from cm3kit.targets import refuse_existing
from cm3kit_tokenizers.errors import DataError

PICTURE_SIZE = 128
FONT, NAMES = "fonts/truetype/noto/NotoColorEmoji.ttf", "unicode/emoji/emoji-test.txt"
CLDR, WORDNET = "unicode/cldr/common", "wordnet"


@dataclass(frozen=True, slots=True)
class Entry:
    """One word of the dictionary. `related` are slugs of entries of the same kind."""

    slug: str
    name: str
    base: str
    characters: str
    group: str
    subgroup: str
    keywords: tuple[str, ...]
    definition: str
    kind_of: str
    related: tuple[str, ...]
    split: Split
    weight: float


def build_emoji(
    packages: Path, output: Path, report: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Build the corpus from unpacked packages and return its figures.

    Args:
        packages: the folder that the packages were unpacked into (it holds `usr/share`).
        output: a folder that does not exist; it gets `pictures/`, the pages, `entries.jsonl`,
            `manifest.jsonl` (page, slug, split, weight) and `LICENSES.md`.
        report: called with (entries done, entries in total).
    """
    share = packages / "usr/share"
    refuse_existing(output, "remove it or choose another folder")
    font, entries = BitmapFont(share / FONT), read_entries(share)
    working = output.with_name(f".tmp-{output.name}")
    shutil.rmtree(working, ignore_errors=True)
    (working / "pictures").mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        picture = on_white(font.picture(str(font.glyph(tuple(map(ord, entry.characters))))), PICTURE_SIZE)
        picture.save(working / "pictures" / f"{entry.slug}.png")
        report(index + 1, len(entries))
    by_slug = {entry.slug: entry for entry in entries}
    for entry in entries:
        pages = forms.pages(entry, by_slug)
        for kind, html in pages.items():
            name = f"{entry.slug}.html" if kind == "entry" else f"{entry.slug}.{kind}.html"
            (working / name).write_text(html, encoding="utf-8")
            weight = entry.weight * forms.SHARES[kind]
            lines.append({"page": name, "slug": entry.slug, "split": entry.split, "weight": round(weight, 5)})
    _write_lines(working / "entries.jsonl", [asdict(entry) for entry in entries])
    _write_lines(working / "manifest.jsonl", lines)
    (working / "LICENSES.md").write_text(LICENSES, encoding="utf-8")
    working.rename(output)
    return stats(output)


def read_entries(share: Path) -> list[Entry]:
    """All names for which the font has one glyph, with their data from the other packages."""
    font = BitmapFont(share / FONT)
    names = [each for each in read_names(share / NAMES) if font.glyph(each.codepoints)]
    keywords, wordnet = read_keywords(share / CLDR), WordNet(share / WORDNET)
    split, sizes = splits(names), Counter(each.base for each in names)
    slugs = _slugs(names)
    kin: dict[str, list[str]] = {}
    for each in names:
        if split[each.name] == "train" and not each.tones:
            kin.setdefault(each.subgroup, []).append(slugs[each.name])
    entries = []
    for each in names:
        words = keywords.get(each.characters.replace("\ufe0f", ""), ())
        head = (
            each.base.partition(": ")[2]
            if each.group == "Flags" and ": " in each.base
            else each.base.split(":")[0]
        )
        sense = wordnet.best(head, words)
        entries.append(
            Entry(
                slugs[each.name],
                each.name,
                each.base,
                each.characters,
                each.group,
                each.subgroup,
                tuple(word for word in words if word != each.name),
                sense.definition if sense else "",
                (sense.kind_of or "") if sense else "",
                _neighbours(kin.get(each.subgroup, []), slugs[each.name]),
                split[each.name],
                # The many variants look so alike that they are only learnt if seen almost as often as others.
                sizes[each.base] ** -0.1,
            )
        )
    return entries


def stats(folder: Path) -> dict[str, Any]:
    """Counts of a built corpus: pages, pictures, entries by split and group."""
    entries = load_entries(folder)
    return {
        "entries": len(entries),
        "pages": sum(1 for _ in folder.glob("*.html")),
        "pictures": sum(1 for _ in (folder / "pictures").iterdir()),
        "splits": dict(Counter(entry.split for entry in entries)),
        "groups": dict(Counter(entry.group for entry in entries)),
        "with_definition": sum(bool(entry.definition) for entry in entries),
    }


def load_entries(folder: Path) -> list[Entry]:
    """Entries of a built corpus."""
    path = folder / "entries.jsonl"
    if not path.is_file():
        raise DataError(f"{path} does not exist; build the corpus with: make data.", code="no_file")
    return [_entry(row) for _, row in numbered_objects(path.read_bytes(), path)]


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(**{**row, "keywords": tuple(row["keywords"]), "related": tuple(row["related"])})


def picture(folder: Path, slug: str) -> Image.Image:
    """The picture of an entry, RGB on white."""
    with Image.open(io.BytesIO((folder / "pictures" / f"{slug}.png").read_bytes())) as opened:
        return opened.convert("RGB")


def _slugs(names: list[Name]) -> dict[str, str]:
    slugs: dict[str, str] = {}
    used: set[str] = set()
    for each in names:
        plain = re.sub(r"[^a-z0-9]+", "-", each.name.lower()).strip("-") or "sign"
        codes = "-".join(f"{code:x}" for code in each.codepoints)
        slug = plain if plain not in used else f"{plain}-{codes}"
        used.add(slug)
        slugs[each.name] = slug
    return slugs


def _neighbours(kin: list[str], slug: str, count: int = 3) -> tuple[str, ...]:
    """The next entries of the same subgroup, cyclically."""
    start = kin.index(slug) + 1 if slug in kin else sum(map(ord, slug)) % max(1, len(kin))
    turned = kin[start:] + kin[:start]
    return tuple(each for each in turned if each != slug)[:count]


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


LICENSES = """# Sources of this corpus

- Pictures: Noto Color Emoji, © Google Inc.; font under the SIL Open Font License 1.1, artwork under Apache-2.0.
- Names, groups and keywords: Unicode emoji-test.txt and CLDR annotations, © Unicode, Inc.; Unicode License v3.
- Definitions and is-a links: WordNet 3.0, © 2006 Princeton University; WordNet 3.0 licence.
"""
