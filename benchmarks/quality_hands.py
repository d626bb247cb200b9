"""What a model can do on the dictionary by many hands, one row for each ability, with 95 % bootstrap intervals.

python benchmarks/quality_hands.py --model pictures --data data/pictures --judge outputs/judge [--part vary,captions]

Pictures are judged by a classifier that was used in no training (`benchmarks/judge.py`), and beside it by the fixed
feature of `cm3kit.evaluation.retrieval` among all drawings of the corpus. Two pictures are different where their mean
absolute difference at 32 × 32 pixels is over 12 of 255. A caption is exact where it is the name, in lower case, with
punctuation and hyphens as spaces and without words for the artist, decoded greedily.
"""

from __future__ import annotations

import argparse
import base64
import html
import importlib
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from justhtml import JustHTML
from PIL import Image

import cm3kit
from cm3kit.data.builders import CHECKPOINTS
from cm3kit.evaluation.bootstrap import Interval, bootstrap
from cm3kit.evaluation.judge import Judge
from cm3kit.evaluation.judged import Reference, pixels_of
from cm3kit.evaluation.retrieval import most_different, thumbnail
from cm3kit.evaluation.words import edit_distance, same_caption
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.images import encode_png
from cm3kit.json_lines import objects

# The builder is a package of files without a name of its own; this one imports none of the others.
sys.path.append(str(CHECKPOINTS / "pictures"))
things: Any = importlib.import_module("things")
GREEDY = GenerateOptions(temperature=0.0)
SEED = 7


@dataclass
class Row:
    """One figure: a value of every trial, and the group that it is resampled with."""

    what: str
    values: list[float] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    trials: str = "pictures"

    def add(self, group: str, value: float) -> None:
        """Note a trial."""
        self.values.append(float(value))
        self.groups.append(group)

    def interval(self) -> Interval:
        """The mean with its interval."""
        return bootstrap([(value, 1.0) for value in self.values], self.groups)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"what": self.what, "n": len(self.values), "of": self.trials, **self.interval().record()}


class Corpus:
    """Names, words and drawings, by split."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.things = {row["slug"]: row for row in objects((folder / "things.jsonl").read_bytes())}
        self.drawings = [*objects((folder / "pictures.jsonl").read_bytes())]
        self.titles = {each.key: each.title for each in (*things.ARTISTS, things.OPENMOJI)}

    def named(self, split: str, count: int) -> list[dict[str, Any]]:
        """Drawings of a split by artists, each with its thing's `name`; `count` of them at a fixed seed."""
        found = [
            {**each, "name": self.things[each["slug"]]["name"]}
            for each in self.drawings
            if each["split"] == split and each["artist"] in self.titles
        ]
        return random.Random(0).sample(found, min(count, len(found)))

    def nearest(self, picture: Image.Image, slug: str) -> str:
        """The artist of the drawing of a thing that differs least from a picture, seen or not."""
        drawn, far = thumbnail(picture), dict[str, float]()
        for each in self.drawings:
            if each["slug"] == slug and each["artist"] in self.titles:
                with Image.open(self.folder / each["file"]) as opened:
                    far[each["artist"]] = float(np.abs(drawn - thumbnail(opened)).mean())
        return min(far, key=lambda artist: far[artist])

    def names(self, split: str, count: int, known: set[str]) -> list[dict[str, Any]]:
        """Things of a split by `known` names, which are no clip art; `count` of them at a fixed seed."""
        found = [
            each
            for each in self.things.values()
            if each["split"] == split and each["group"] != "clip art" and each["name"] in known
        ]
        return random.Random(0).sample(found, min(count, len(found)))


@dataclass
class Bench:
    """What all parts share; `ended` and `formed` collect whatever gaps and pages the parts fill."""

    kit: Kit
    corpus: Corpus
    judge: Judge | None
    reference: Reference
    args: argparse.Namespace
    ended: Row = field(default_factory=lambda: Row("gaps that ended by themselves", trials="gaps"))
    formed: Row = field(default_factory=lambda: Row("well-formed pages", trials="pages"))

    def draw(self, prompt: str, n: int = 1, **options: Any) -> list[Image.Image]:
        """Pictures from words, by the model's defaults but for `options`."""
        made = self.kit.generate(
            prompt, n=n, seed=SEED, options=GenerateOptions(batch_size=min(n, 8), **options)
        )
        return [each.image for each in made if each.image is not None]

    def fill(self, page: str) -> list[str]:
        """The words in the gaps of a page, greedily."""
        parsed = cm3kit.Page.parse(page.encode(), base=self.corpus.folder)
        filled = self.kit.infill(parsed, seed=SEED, options=GREEDY)[0]
        whole = filled.html.decode() if page.startswith("<!") else "<!DOCTYPE html>" + filled.html.decode()
        self.formed.add(page, not JustHTML(whole, collect_errors=True).errors)
        for number, gap in enumerate(filled.gaps):
            self.ended.add(f"{page}{number}", gap.ended)
        return [gap.text for gap in filled.gaps]

    def right(self, pictures: Sequence[Image.Image], name: str, most: int = 5) -> list[bool]:
        """Whether the judge has the name among its first ones for each picture."""
        if self.judge is None or not pictures:
            return [False] * len(pictures)
        return [rank < most for rank in self.judge.ranks(pixels_of(pictures), [name] * len(pictures))]

    def each(self, part: str, found: Sequence[Any]) -> Iterator[Any]:
        """One by one, with a word on standard error now and then."""
        start = time.perf_counter()
        for done, one in enumerate(found, 1):
            yield one
            if done % 20 == 0 or done == len(found):
                left = (time.perf_counter() - start) / done * (len(found) - done)
                print(f"{part} {done}/{len(found)}, {left / 60:.1f} min left", file=sys.stderr, flush=True)

    def judged(self) -> set[str]:
        """Names that the judge knows; all of the corpus without one."""
        names = {each["name"] for each in self.corpus.things.values()}
        return names & set(self.judge.names) if self.judge is not None else names


def vary(bench: Bench) -> Iterator[Row]:
    """Four pictures of each seen name: different ones, and the right ones."""
    both = Row("-n 4: three different, three right (top-5)", trials="names")
    different = Row("-n 4: three different", trials="names")
    first, five = Row("drawn, judge's top-1: seen names"), Row("drawn, judge's top-5: seen names")
    old = Row("drawn, among the 5 nearest of other names in the fixed feature: seen names")
    for thing in bench.each("vary", bench.corpus.names("train", bench.args.names, bench.judged())):
        name, made = thing["name"], bench.draw(thing["name"], 4)
        varied = most_different(made) >= 3
        right = bench.right(made, name)
        both.add(name, varied and sum(right) >= 3)
        different.add(name, varied)
        for top1, top5 in zip(bench.right(made, name, 1), right, strict=True):
            first.add(name, top1)
            five.add(name, top5)
        for rank in bench.reference.ranks(pixels_of(made), [name] * len(made)) if made else ():
            old.add(name, rank < 5)
    yield from (both, different, first, five, old) if bench.judge is not None else (different, old)


def styles(bench: Bench) -> Iterator[Row]:
    """Drawn as an artist is asked for, whose drawing of the name was seen or was held out."""
    if bench.judge is None:
        return
    for split, what in (("train", "seen"), ("cell", "held-out drawings")):
        style = Row(f"drawn in the style asked for: {what}")
        name = Row(f"drawn in a style, name right (top-5): {what}")
        # The judge tells artists with difficulty, so the nearest of all drawings of the name is asked too.
        nearest = Row(f"drawn in a style, that artist's drawing is the nearest of the name's: {what}")
        known = bench.judged()
        asked = [each for each in bench.corpus.named(split, 4 * bench.args.names) if each["name"] in known]
        for each in bench.each(f"styles {split}", asked[: bench.args.names]):
            made = bench.draw(f"{each['name']}, {bench.corpus.titles[each['artist']]}")
            for hand, right in zip(
                bench.judge.drawn_by(pixels_of(made)) if made else [],
                bench.right(made, each["name"]),
                strict=True,
            ):
                style.add(each["file"], hand == each["artist"])
                name.add(each["file"], right)
            for one in made:
                nearest.add(each["file"], bench.corpus.nearest(one, each["slug"]) == each["artist"])
        yield from (style, nearest, name)


def synonyms(bench: Bench) -> Iterator[Row]:
    """Drawn from words that caption no picture of the name (see the builder), and name nothing else."""
    if bench.judge is None:
        return
    row = Row("drawn from words never used for the name (top-5)")
    taken = {each["name"] for each in bench.corpus.things.values()}
    pairs = [
        (thing["name"], word)
        for thing in bench.corpus.names("train", 10**6, bench.judged())
        for word in thing["synonyms"]
        if things.chance(f"{thing['name']}~{word}") < 64 and word not in taken
    ]
    chosen = random.Random(0).sample(pairs, min(bench.args.names, len(pairs)))
    for name, word in bench.each("synonyms", chosen):
        for right in bench.right(bench.draw(word), name):
            row.add(f"{name}~{word}", right)
    yield row


def scenes(bench: Bench) -> Iterator[Row]:
    """Scenes of pairs that were held out: the crop at each drawn position judged by its own name."""
    if bench.judge is None:
        return
    row = Row("scenes of held-out pairs: both crops right (top-5)", trials="scenes")
    known = bench.judged()
    found = [
        each
        for each in bench.corpus.drawings
        if each["split"] == "scene"
        and len(each["parts"]) == 2
        and all(p["name"] in known for p in each["parts"])
    ]
    for each in bench.each("scenes", random.Random(0).sample(found, min(bench.args.names, len(found)))):
        for made in bench.draw(each["caption"]):
            crops = []
            for part in each["parts"]:
                scale = made.width / 96
                crops.append(made.crop(tuple(round(edge * scale) for edge in part["box"])))
            row.add(
                each["file"],
                all(bench.right([c], p["name"])[0] for c, p in zip(crops, each["parts"], strict=True)),
            )
    yield row


BEHIND = '<p><img src="{file}"></p>\n<p><mask></p>\n'
ALT = '<!DOCTYPE html><img alt="<mask>" src="{file}">'


def captions(bench: Bench) -> Iterator[Row]:
    """Names of pictures, behind them and as alt texts, as they lie in the corpus and of another size."""
    for split, what, size in (
        ("train", "seen drawings", 0), ("train", "seen drawings made 128 × 128", 128),
        ("train", "seen drawings made 72 × 72", 72), ("cell", "held-out drawings", 0), ("openmoji", "OpenMoji", 0),
    ):  # fmt: skip
        behind, alt = Row(f"captions exact: {what}"), Row(f"alt texts exact: {what}")
        for each in bench.each(f"captions {what}", bench.corpus.named(split, bench.args.names)):
            src = resized(bench.corpus.folder / each["file"], size) if size else each["file"]
            for row, form in ((behind, BEHIND), (alt, ALT)):
                (text,) = bench.fill(form.format(file=src))
                row.add(each["file"], same_caption(text, each["name"], bench.corpus.titles.values()))
        yield from (behind, alt)


def resized(path: Path, size: int) -> str:
    """The picture in another size as a data URI."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA").resize((size, size), Image.Resampling.BICUBIC)
    return "data:image/png;base64," + base64.b64encode(encode_png(picture)).decode()


TITLE = '<!DOCTYPE html><title><mask></title>\n<h1>{name}</h1>\n<p>{about}</p>\n<p><img src="{file}"></p>\n'
ABOUT = '<h1>{name}</h1>\n<p><mask></p>\n<p><img src="{file}"></p>\n'


def words(bench: Bench) -> Iterator[Row]:
    """Definitions and titles on pages of names that were never seen: 1 minus edit distance over length."""
    row = Row("definitions and titles, edit similarity: held-out names", trials="gaps")
    about = {slug: each["definition"] for slug, each in bench.corpus.things.items() if each["definition"]}
    found = [each for each in bench.corpus.named("rest", 10**6) if each["slug"] in about]
    for each in bench.each("words", found[: bench.args.names]):
        sentence = about[each["slug"]].rstrip(".")
        sentence = sentence[:1].upper() + sentence[1:] + "."
        page = {"name": html.escape(each["name"]), "about": html.escape(sentence), "file": each["file"]}
        (title,), (text,) = bench.fill(TITLE.format(**page)), bench.fill(ABOUT.format(**page))
        for one, right in ((title, each["name"]), (text.split(" A kind of")[0], sentence)):
            one = html.unescape(one).strip()
            row.add(each["slug"], 1 - edit_distance(one, right) / max(1, len(one), len(right)))
    yield row


def passes(bench: Bench) -> Iterator[Row]:
    """The diffusion decoder with as many passes as there are codes, half and a quarter of them."""
    if bench.judge is None or "diffusion" not in bench.kit.parts.defaults.decoders:
        return
    codes = math.prod(bench.kit.image.grid)
    places = bench.kit.parts.defaults.diffusion.trained_block or codes  # steps are those of a block
    how: dict[str, Any] = {"decoder": "diffusion", "schedule": "uniform", "accept": {"name": "top"}}
    names = bench.corpus.names("train", bench.args.names, bench.judged())
    for share in (1, 2, 4):
        row = Row(f"diffusion decoder, {codes // share} passes (top-5): seen names")
        for thing in bench.each(f"passes {share}", names):
            for right in bench.right(bench.draw(thing["name"], steps=places // share, **how), thing["name"]):
                row.add(thing["name"], right)
        yield row


Part = Callable[[Bench], Iterator[Row]]
PARTS: dict[str, Part] = {
    each.__name__: each for each in (vary, styles, synonyms, scenes, captions, words, passes)
}


def main() -> None:
    """Measure the chosen parts; print a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pictures")
    parser.add_argument("--data", type=Path, default=Path("data/pictures"))
    parser.add_argument("--judge", type=Path, default=Path("outputs/judge"))
    parser.add_argument("--part", default=",".join(PARTS))
    parser.add_argument("--names", type=int, default=1000, help="the most names, pictures or pages of a row")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    judge = Judge.load(args.judge) if (args.judge / "judge.json").is_file() else None
    if judge is None:
        print(f"no judge in {args.judge} (benchmarks/judge.py): its rows are left out", file=sys.stderr)
    bench = Bench(cm3kit.load(args.model), Corpus(args.data), judge, Reference.read(args.data), args)
    rows = [row for part in args.part.split(",") for row in PARTS[part](bench)]
    rows += [bench.ended, bench.formed]
    if empty := [row.what for row in rows if not row.values]:
        print(f"nothing to measure in this corpus: {'; '.join(empty)}", file=sys.stderr)
    rows = [row for row in rows if row.values]
    if args.json:
        print(json.dumps([row.record() for row in rows], indent=1))
        return
    print("| what | figure | 95 % | n |\n| --- | --- | --- | --- |")
    for row in rows:
        found = row.interval()
        print(
            f"| {row.what} | {found.value:.3f} | {found.low:.3f} – {found.high:.3f} | {len(row.values)} {row.trials} |"
        )


if __name__ == "__main__":
    main()
