"""The corpus of checkpoints/pictures: names of Unicode's emoji drawn by eight artists, clip art, and scenes of them.

`cm3kit data build pictures` makes it from Debian packages (unicode-data, unicode-cldr-core, wordnet-base,
openclipart-svg) and npm packages (see `ARTISTS`), each unpacked into a folder of its own. All choices follow from
SHA-256 of names, so that the same packages make the same corpus.

Held out, never trained on: names of `cm3kit.data.names.splits` (`tone`, `rest`); a drawing with
SHA-256("artist/name")[0] < 8 (`cell`); OpenMoji whole (`openmoji`, and only where its package is given: its licence is
share-alike); scenes of a pair with SHA-256("a+b")[0] < 16, a < b (`scene`). A synonym with
SHA-256("name~synonym")[0] < 64 captions no picture.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from cm3kit.data import scenes
from cm3kit.data.builders import corpus
from cm3kit.data.iconify import IconSet, plain, render, slug, squared
from cm3kit.data.names import Name, read_keywords, read_names, splits
from cm3kit.data.wordnet import WordNet
from cm3kit_tokenizers.errors import DataError, OutputError

SIZE = 96
SCENES = 24_000


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


Job = tuple[Drawing, "str | Path"]


@corpus("pictures")
def build(packages: Path, output: Path, report: Callable[[int, int], None], workers: int) -> dict[str, Any]:
    """Build the corpus from unpacked packages, and return its figures.

    Args:
        packages: the folder with `usr/share` of the Debian packages, and with the npm packages in `npm/NAME`.
        output: a folder that does not exist; it gets `pictures/`, the pages, `things.jsonl`, `pictures.jsonl`
            (file, thing, artist, split, weight, licence), `manifest.jsonl` (page, split, weight) and `LICENSES.md`.
        workers: processes that draw.
    """
    if output.exists():
        raise OutputError(f"{output} exists already; remove it or choose another folder.", code="exists")
    things = read_things(packages)
    jobs = list(_jobs(packages, things))
    working = output.with_name(f".tmp-{output.name}")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    drawings, dropped = draw(working, jobs, things, report, workers)
    clips = {drawing.slug for drawing in drawings if drawing.artist == "clipart"}
    things = [thing for thing in things if thing.group != "clip art" or thing.slug in clips]
    by_slug = {thing.slug: thing for thing in things}
    _write_lines(working / "things.jsonl", things)
    _write_lines(working / "pictures.jsonl", drawings)
    pages = Pages(by_slug, drawings)
    lines = []
    for number, (page, split, weight) in enumerate(pages.all()):
        name = f"{number:06}.html"
        (working / name).write_text(page, encoding="utf-8")
        lines.append({"page": name, "split": split, "weight": round(weight, 6)})
    _write_lines(working / "manifest.jsonl", lines)
    (working / "LICENSES.md").write_text(_licences(drawings), encoding="utf-8")
    working.rename(output)
    return {
        "things": len(things), "pictures": len(drawings), "pages": len(lines),
        "not drawn": dict(dropped - Counter([""])),
        "splits": dict(Counter(drawing.split for drawing in drawings)),
        "artists": dict(Counter(drawing.artist for drawing in drawings)),
    }  # fmt: skip


def draw(
    folder: Path,
    jobs: Sequence[Job],
    things: Sequence[Thing],
    report: Callable[[int, int], None],
    workers: int,
) -> tuple[list[Drawing], Counter[str]]:
    """Draw all pictures into a folder, scenes too; and count what could not be drawn, by the reason."""
    drawings: list[Drawing] = []
    dropped: Counter[str] = Counter()
    total = len(jobs) + SCENES
    with ProcessPoolExecutor(workers) as pool:
        for done, (drawing, why) in enumerate(pool.map(partial(_draw, folder), jobs, chunksize=64), 1):
            dropped[why] += bool(why)
            drawings += [] if why else [drawing]
            report(done, total)
    sprites = _sprites(drawings, {thing.slug: thing for thing in things})
    made = scenes.make(
        folder, sprites, SCENES, SIZE, lambda done, _: report(len(jobs) + done, total), workers
    )
    drawings += [
        Drawing(scene.file, scene.slug, "scene", scene.split, 1.0, scene.licence, scene.caption, scene.parts)
        for scene in made
    ]
    return drawings, dropped


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


def _jobs(packages: Path, things: list[Thing]) -> Iterator[Job]:
    """Every drawing with its SVG or its file."""
    npm = packages / "npm"
    names = [thing for thing in things if thing.group != "clip art"]
    openmoji = [OPENMOJI] if (npm / OPENMOJI.package).is_dir() else []
    found: list[tuple[Thing, Artist, str | Path]] = []
    for artist in (*ARTISTS, *openmoji):
        if artist.key == "fluent":
            files = {
                plain(tuple(int(code, 16) for code in path.stem.split("-"))): path
                for path in sorted((npm / artist.package / "assets").glob("*.webp"))
            }
            found += [
                (thing, artist, files[plain(thing.points)]) for thing in names if plain(thing.points) in files
            ]
            continue
        icons, taken = IconSet(npm / artist.package), set[str]()
        for thing in names:
            icon = icons.find(thing.points, thing.name, thing.name.replace("flag: ", "flag for "))
            if icon is not None and icon not in taken:
                taken.add(icon)
                found.append((thing, artist, icons.svg(icon)))
    hands = Counter(thing.slug for thing, artist, _ in found if artist is not OPENMOJI)
    for thing, artist, source in found:
        held = thing.split
        if artist is OPENMOJI:
            held = "openmoji"
        elif held == "train" and chance(f"{artist.key}/{thing.name}") < 8:
            held = "cell"
        weight = thing.weight / max(1, hands[thing.slug]) ** 0.5
        yield (
            Drawing(
                f"pictures/{artist.key}/{thing.slug}.webp",
                thing.slug,
                artist.key,
                held,
                weight,
                artist.licence,
            ),
            source,
        )
    for thing in things:
        if thing.group == "clip art":
            path = packages / CLIPART / f"{thing.slug.removeprefix('clip/')}.svg"
            yield Drawing(f"pictures/{thing.slug}.webp", thing.slug, "clipart", "train", 0.6, "CC0-1.0"), path


def _draw(folder: Path, job: Job) -> tuple[Drawing, str]:
    """Draw one picture into the corpus; why it was left out, or nothing."""
    drawing, source = job
    try:
        if isinstance(source, Path) and source.suffix == ".webp":
            with Image.open(source) as opened:
                picture = squared(opened, SIZE)
        else:
            svg = source.read_text(encoding="utf-8", errors="replace") if isinstance(source, Path) else source
            picture = render(svg, SIZE)
    except DataError as error:
        return drawing, error.code
    _, high = picture.getchannel("A").getextrema()
    if high < 128:
        return drawing, "empty"
    if drawing.artist == "clipart" and _is_plain(picture):
        return drawing, "one colour"
    path = folder / drawing.file
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=95, method=4)
    return drawing, ""


def _is_plain(picture: Image.Image) -> bool:
    """Whether a picture shows next to nothing on white."""
    grey = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("L")
    counts = grey.histogram()
    return max(counts) > 0.97 * sum(counts)


def _sprites(drawings: list[Drawing], things: dict[str, Thing]) -> list[scenes.Sprite]:
    """Drawings of things that can be put into a scene: trained on, with a word of their own, no flags or signs."""
    groups = {
        "Animals & Nature",
        "Food & Drink",
        "Travel & Places",
        "Activities",
        "Objects",
        "Smileys & Emotion",
    }
    composed = {"clock", "circle", "square", "heart", "moon", "globe", "map"}
    return [
        scenes.Sprite(things[each.slug].name, each.artist, each.file, each.licence)
        for each in drawings
        if each.split == "train" and things[each.slug].group in groups
        and not composed & set(things[each.slug].name.split()) and ":" not in things[each.slug].name
        and "o'clock" not in things[each.slug].name and "-thirty" not in things[each.slug].name
    ]  # fmt: skip


class Pages:
    """The pages of the corpus: most name a thing once, so that a name has to be read off its picture."""

    def __init__(self, things: dict[str, Thing], drawings: list[Drawing]) -> None:
        self.things, self.drawings = things, drawings
        self.titles = {artist.key: artist.title for artist in (*ARTISTS, OPENMOJI)} | {"clipart": "Clip Art"}
        self.same: dict[tuple[str, str], list[Drawing]] = defaultdict(list)
        self.kin: dict[tuple[str, str], list[Drawing]] = defaultdict(list)
        for each in drawings:
            if each.artist != "scene":
                self.same[each.slug, each.split].append(each)
                self.kin[self.things[each.slug].group, each.artist].append(each)

    def all(self) -> Iterator[tuple[str, str, float]]:
        """(page, split, weight) of every page."""
        for drawing in self.drawings:
            found = self.of_scene(drawing) if drawing.artist == "scene" else self.of_thing(drawing)
            for page, share in found:
                yield page, drawing.split, share * drawing.weight

    def of_scene(self, drawing: Drawing) -> Iterator[tuple[str, float]]:
        """A picture behind, before and in its caption, each once."""
        words, img = _text(drawing.caption), f'<img src="{drawing.file}">'
        yield f'<img alt="{words}" src="{drawing.file}">\n', 0.06
        yield f"<p>{words}</p>\n<p>{img}</p>\n", 0.025
        yield f"<p>{img}</p>\n<p>{words}</p>\n", 0.045

    def of_thing(self, drawing: Drawing) -> Iterator[tuple[str, float]]:
        """The forms of one drawing, with how often each is drawn."""
        thing, src = self.things[drawing.slug], drawing.file
        name, img, artist = _text(thing.name), f'<img src="{src}">', self.titles[drawing.artist]
        yield f'<img alt="{name}" src="{src}">\n', 0.28
        if drawing.artist == OPENMOJI.key:  # for evaluation only, which asks for no more
            return
        yield f"<p>{name}</p>\n<p>{img}</p>\n", 0.1
        yield f"<p>{img}</p>\n<p>{name}</p>\n", 0.16
        yield f'<img src="{src}" title="{name}">\n', 0.05
        yield f'<img alt="{name}, {artist}" src="{src}">\n', 0.16
        if drawing.slug.encode()[-1] % 2:
            yield f"<p>{name} by {artist}</p>\n<p>{img}</p>\n", 0.05
        else:
            yield f"<p>{img}</p>\n<p>{name} by {artist}</p>\n", 0.05
        yield from self._other_words(thing, drawing, src)
        yield from self._long(thing, drawing, src)

    def _other_words(self, thing: Thing, drawing: Drawing, src: str) -> Iterator[tuple[str, float]]:
        """Captions by synonyms and tags: some of those that are allowed, by artist."""
        allowed = [word for word in thing.synonyms if chance(f"{thing.name}~{word}") >= 64]
        allowed.sort(
            key=lambda word: hashlib.sha256(f"{drawing.artist}/{thing.name}~{word}".encode()).digest()
        )
        for word in allowed[:3]:
            yield f'<img alt="{_text(word)}" src="{src}">\n', 0.04
        if len(allowed) > 1:
            yield f'<p>{_text(", ".join(allowed[:4]))}</p>\n<p><img src="{src}"></p>\n', 0.05

    def _long(self, thing: Thing, drawing: Drawing, src: str) -> Iterator[tuple[str, float]]:
        """Pages with more on them: definition, keywords, other drawings, links."""
        name, words = _text(thing.name), _text(", ".join(thing.keywords[:6]) or thing.group)
        about = _definition(thing)
        caption = f'<figure>\n<img src="{src}">\n<figcaption>{name}</figcaption>\n</figure>\n'
        figure = f"<h2>{_text(thing.group)}</h2>\n{caption}"
        yield _page(thing.group, "", figure), 0.03
        yield (
            _page(
                thing.group,
                "",
                f'<table>\n<tr><td><img alt="{name}" src="{src}"></td><td>{words}</td></tr>\n</table>\n',
            ),
            0.02,
        )
        if about:
            meta = f'<meta name="description" content="{words}">\n'
            yield _page(thing.name, meta, f'<p><img src="{src}"></p>\n{about}\n'), 0.06
            yield f'<h1>{name}</h1>\n{about}\n<p><img src="{src}"></p>\n', 0.05
            yield f'<p><img src="{src}"></p>\n{about}\n', 0.06
        others = [each for each in self.same[drawing.slug, drawing.split] if each is not drawing]
        if others:
            other = others[chance(drawing.file, 1) % len(others)]
            pair = (drawing, other) if chance(drawing.file, 2) % 2 else (other, drawing)
            items = "\n".join(
                f'<li><img src="{each.file}"> {name}, {self.titles[each.artist]}</li>' for each in pair
            )
            yield f"<ul>\n{items}\n</ul>\n", 0.03
        kin = [
            each
            for each in self.kin[thing.group, drawing.artist]
            if each.split == drawing.split and each.slug != drawing.slug
        ]
        if kin:
            other = kin[(chance(drawing.file, 3) * 256 + chance(drawing.file, 4)) % len(kin)]
            links = "\n".join(
                f'<li><a href="{_text(each.slug)}.html" title="{_text(self.things[each.slug].name)}">'
                f'<img src="{each.file}"></a></li>'
                for each in (drawing, other)
            )
            yield f"<ul>\n{links}\n</ul>\n", 0.04


def _text(words: str) -> str:
    return html.escape(words)


def _definition(thing: Thing) -> str:
    if not thing.definition:
        return ""
    kind = f" A kind of {_text(thing.kind_of)}." if thing.kind_of and thing.group != "clip art" else ""
    sentence = thing.definition[:1].upper() + thing.definition[1:]
    return f"<p>{_text(sentence.rstrip('.'))}.{kind}</p>"


def _page(title: str, head: str, body: str) -> str:
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>\n'
        f"{head}</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _licences(drawings: list[Drawing]) -> str:
    count = Counter(drawing.artist for drawing in drawings)
    rows = [f"| {each.title} | {count[each.key]} | {each.credit} | {each.licence} |"
            for each in (*ARTISTS, OPENMOJI) if count[each.key]]  # fmt: skip
    head = "# Where the pictures of this corpus come from\n\n"
    head += "| artist | pictures | attribution | licence |\n|---|---|---|---|\n"
    clip = f"| Clip Art | {count['clipart']} | Open Clip Art Library | CC0-1.0 |"
    made = f"| scenes | {count['scene']} | made of the drawings above; their licences are in `pictures.jsonl` | |"
    return head + "\n".join([*rows, clip, made]) + WORDS


WORDS = """

Pictures were scaled, and for scenes recoloured and combined. Names, groups and keywords: Unicode emoji-test.txt and
CLDR annotations, © Unicode, Inc.; Unicode License v3. Tags: emojibase-data, © Miles Johnson, MIT. Definitions, synonyms
and is-a links: WordNet 3.0, © 2006 Princeton University; WordNet 3.0 licence.
"""


def _write_lines(path: Path, rows: list[Any]) -> None:
    lines = (json.dumps(row if isinstance(row, dict) else asdict(row), ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
