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

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from cm3kit.data import scenes
from cm3kit.data.builders import corpus
from cm3kit.data.iconify import IconSet, plain, render, squared
from cm3kit.data.wordnet import WordNet
from cm3kit.json_lines import dump_jsonl
from cm3kit.targets import refuse_existing
from cm3kit_tokenizers.errors import DataError

from .nouns import noun_pages
from .pages import Pages
from .things import ARTISTS, CLIPART, OPENMOJI, Artist, Drawing, Thing, chance, read_things

SIZE = 96
SCENES = 24_000
Job = tuple[Drawing, "str | Path"]


@corpus("pictures")
def build(packages: Path, output: Path, report: Callable[[int, int], None], workers: int) -> dict[str, Any]:
    """Build the corpus from unpacked packages, and return its figures.

    Args:
        packages: the folder with `usr/share` of the Debian packages, and with the npm packages in `npm/NAME`.
        output: a folder that does not exist; it gets `pictures/`, the pages, `things.jsonl`, `pictures.jsonl`
            (file, thing, artist, split, weight, licence), `manifest.jsonl` (page, split, weight, form, things) and
            `LICENSES.md`.
        workers: processes that draw.
    """
    refuse_existing(output, "remove it or choose another folder")
    things = read_things(packages)
    jobs = list(_jobs(packages, things))
    working = output.with_name(f".tmp-{output.name}")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    drawings, dropped = draw(working, jobs, things, report, workers)
    clips = {drawing.slug for drawing in drawings if drawing.artist == "clipart"}
    things = [thing for thing in things if thing.group != "clip art" or thing.slug in clips]
    by_slug = {thing.slug: thing for thing in things}
    (working / "things.jsonl").write_text(dump_jsonl([*map(asdict, things)]), encoding="utf-8")
    (working / "pictures.jsonl").write_text(dump_jsonl([*map(asdict, drawings)]), encoding="utf-8")
    pages = Pages(by_slug, drawings)
    lines = []
    nouns = noun_pages(WordNet(packages / "usr/share/wordnet"), things)
    for number, page in enumerate(chain(pages.all(), nouns)):
        name = f"{number:06}.html"
        (working / name).write_text(page.content, encoding="utf-8")
        lines.append(
            {
                "page": name,
                "split": page.split,
                "weight": round(page.weight, 6),
                "form": page.form,
                "things": page.slugs,
            }
        )
    (working / "manifest.jsonl").write_text(dump_jsonl(lines), encoding="utf-8")
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
