"""What is drawn and by whom: names of emoji and titles of clip art with their words, artists and their licences."""

from __future__ import annotations

import hashlib
import html
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm3kit.data.iconify import plain, slug
from cm3kit.data.names import Name, read_keywords, read_names, splits
from cm3kit.data.wordnet import WordNet
from cm3kit_tokenizers.errors import DataError


@dataclass(frozen=True, slots=True)
class Artist:
    """Who drew a set: how captions call them, the npm package, and what attribution its licence asks for."""

    key: str
    title: str
    package: str
    licence: str
    credit: str


ARTISTS = (
    Artist("noto", "Noto", "@iconify-json/noto", "Apache-2.0", "Noto Emoji, © Google Inc."),
    Artist("blob", "Blob", "@iconify-json/noto-v1", "Apache-2.0", "Noto Emoji v1 (blobs), © Google Inc."),
    Artist("twemoji", "Twemoji", "@iconify-json/twemoji", "CC-BY-4.0", "Twemoji, © Twitter, Inc. and others"),
    Artist("flat", "Fluent Flat", "@iconify-json/fluent-emoji-flat", "MIT", "Fluent Emoji, © Microsoft Corporation"),
    Artist("fluent", "Fluent 3D", "@lobehub/fluent-emoji-3d", "MIT", "Fluent Emoji, © Microsoft Corporation"),
    Artist("fxemoji", "FxEmoji", "@iconify-json/fxemoji", "Apache-2.0", "FxEmojis, © Mozilla"),
    Artist("emojione", "EmojiOne", "@iconify-json/emojione", "CC-BY-4.0", "EmojiOne 2 (EmojiTwo), © Emoji One"),
    Artist("streamline", "Streamline", "@iconify-json/streamline-emojis", "CC-BY-4.0", "© Streamline"),
)  # fmt: skip
OPENMOJI = Artist(
    "openmoji", "OpenMoji", "@iconify-json/openmoji", "CC-BY-SA-4.0", "OpenMoji, © OpenMoji contributors"
)
TAGS = "emojibase-data"
CLIPART = "usr/share/openclipart/svg"
# Folders of clip art that show shapes, writing or parts of programs instead of things.
ABSTRACT = {
    "shapes", "stars", "buttons", "icons", "special", "decorations", "unsorted", "logos", "diagrams", "connectors",
    "signs_and_symbols", "symbols", "patterns", "gradients", "cards", "flags", "ornamental", "cardbacks",
}  # fmt: skip


def chance(text: str, byte: int = 0) -> int:
    """A number 0 … 255 that a text stands for."""
    return hashlib.sha256(text.encode()).digest()[byte]


@dataclass(frozen=True, slots=True)
class Thing:
    """A name, or a title of clip art, with the words that are known for it."""

    slug: str
    name: str
    base: str
    group: str
    split: str
    weight: float
    keywords: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    definition: str = ""
    kind_of: str = ""
    points: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture of a thing by an artist (`clipart` for clip art, `scene` for what is put together from others)."""

    file: str
    slug: str
    artist: str
    split: str
    weight: float
    licence: str
    caption: str = ""
    parts: tuple[dict[str, Any], ...] = field(default=())


def read_things(packages: Path) -> list[Thing]:
    """Names of one tone at most, with their words, and titles of clip art."""
    share = packages / "usr/share"
    wordnet, keywords = WordNet(share / "wordnet"), read_keywords(share / "unicode/cldr/common")
    listed = read_names(share / "unicode/emoji/emoji-test.txt")
    split, tags = splits(listed), _tags(packages / "npm" / TAGS)
    names = [each for each in listed if each.group != "Component" and len(set(each.tones)) < 2]
    out, used = [], set[str]()
    for each in names:
        words = keywords.get(each.characters.replace("\ufe0f", ""), ())
        head = each.base.partition(": ")[2] if each.base.startswith("flag: ") else each.base.split(":")[0]
        sense = wordnet.best(head, words)
        exact = sense is not None and head.lower() in (word.lower() for word in sense.words)
        own = slug(each.name) or "sign"
        own = own if own not in used else f"{own}-{'-'.join(f'{code:x}' for code in each.codepoints)}"
        used.add(own)
        known = [each.name, each.base]
        more = [*tags.get(plain(each.codepoints), ()), *words, *(sense.words if exact and sense else ())]
        out.append(
            Thing(
                own, each.name, each.base, each.group, split[each.name], _weight(each),
                tuple(dict.fromkeys(word for word in words if word not in known)),
                tuple(dict.fromkeys(word.lower() for word in more if word.lower() not in [k.lower() for k in known])),
                sense.definition if sense else "", (sense.kind_of or "") if sense else "", each.codepoints,
            )
        )  # fmt: skip
    return [*out, *_clip_things(share / CLIPART.removeprefix("usr/share/"))]


def _weight(name: Name) -> float:
    """Variants are many and alike: tones, genders and flags come less often than what has a word of its own."""
    if name.tones:
        return 0.3
    gendered = name.group == "People & Body" and name.name.split()[0] in ("man", "woman", "men", "women")
    return 0.6 if gendered or name.group == "Flags" else 1.0


def _tags(folder: Path) -> dict[tuple[int, ...], tuple[str, ...]]:
    path = folder / "en/data.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist; it comes from the npm package {TAGS}.", code="no_file")
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {
        plain(tuple(int(code, 16) for code in each["hexcode"].split("-"))): tuple(row.get("tags", ()))
        for row in rows
        for each in (row, *row.get("skins", ()))
    }


def _clip_things(folder: Path) -> list[Thing]:
    """Titles of clip art that name a thing; numbers at their ends are dropped."""
    out = []
    for path in sorted(folder.rglob("*.svg")):
        place = path.relative_to(folder)
        if ABSTRACT & set(place.parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        title = _field(text, "dc:title")
        words = re.sub(r"[_\-\s]+", " ", re.sub(r"[\d#.()]+", " ", title)).strip().lower()
        if "<text" in text or len(text) > 400_000 or not re.fullmatch(r"[a-z][a-z' ]{2,40}", words):
            continue
        tags = [tag.strip().lower() for tag in re.findall(r"<rdf:li>([^<]+)</rdf:li>", text)]
        out.append(
            Thing(
                f"clip/{place.with_suffix('').as_posix()}", words, words, "clip art", "train", 0.6,
                tuple(dict.fromkeys(tags)), tuple(dict.fromkeys(tag for tag in tags if tag != words)),
                " ".join(html.unescape(_field(text, "dc:description")).split())[:200], place.parts[0],
            )
        )  # fmt: skip
    return out


def _field(text: str, name: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", text)
    return html.unescape(found[1]).strip() if found else ""
