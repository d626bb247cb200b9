"""A part of the corpus for a phase of training, in forms of pages of its own.

few: 353 names by most artists; most, most-wide, most-told, most-by, most-words, most-nouns, most-last: 613 of them, on
naming pages, on others too, with artists, synonyms and pages of words alone more often, with artists above all, with
four times as many pages of words alone, with those of all nouns, where a title can only be read off a heading, and clip
art's, and with a quarter as many of nouns; names, base: all base names, on naming pages and on others; wide: flags too.

python checkpoints/pictures/part.py data/pictures few -o data/pictures-few

A decoder binds a name to its pictures soon where names are few and nearly every page says just a name beside its
picture; from there it learns the others faster than from nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from cm3kit.fill.finding import link_or_copy
from cm3kit.json_lines import dump_jsonl, numbered_objects
from cm3kit.targets import refuse_existing
from cm3kit_tokenizers.errors import Cm3kitError

MANY = 170  # names of things by seven artists that are added to those by eight
THINGS = {"Food & Drink", "Animals & Nature", "Travel & Places", "Activities"}
NAMING = {"alt": 1.0, "behind": 1.0, "alt by": 0.5, "before": 0.4}
MORE = {
    "by": 0.1,
    "title": 0.1,
    "synonym": 0.12,
    "group": 0.1,
    "definition": 0.1,
    "hands": 0.05,
    "links": 0.05,
}
LAST = {
    "alt": 1.0,
    "behind": 1.3,
    "alt by": 0.4,
    "before": 0.4,
    "by": 0.08,
    "title": 0.08,
    "synonym": 0.06,
    "group": 0.04,
    "definition": 0.12,
    "hands": 0.03,
    "links": 0.03,
}
TOLD = {
    "alt": 1.0,
    "behind": 1.2,
    "alt by": 1.4,
    "before": 0.4,
    "by": 0.5,
    "title": 0.15,
    "synonym": 0.15,
    "group": 0.05,
    "definition": 0.08,
    "entry": 0.12,
    "words": 0.15,
    "hands": 0.05,
    "links": 0.03,
}
WORDS = TOLD | {"words": 0.6, "entry": 0.3, "definition": 0.12}
NOUNS = TOLD | {"words": 0.3, "entry": 0.3, "definition": 0.12, "noun": 0.12}
LESS = NOUNS | {"noun": 0.03}
CLIPART = {"entry": 1.0, "definition": 0.2}  # titles that are hardly to be told from the picture
BY = TOLD | {"alt by": 3.0, "by": 1.2, "synonym": 0.1}
FORMS = {
    "few": NAMING,
    "most": NAMING,
    "most-wide": LAST,
    "most-told": TOLD,
    "most-by": BY,
    "most-words": WORDS,
    "most-nouns": NOUNS,
    "most-last": LESS,
    "names": NAMING,
    "base": NAMING | MORE,
    "wide": LAST,
}
MOST = 613  # names whose drawings 2.65 million weights outside tables still hold
FLAG = 0.5  # how often a page of a flag is read, times that of others


def is_base(thing: dict[str, Any]) -> bool:
    """Whether a thing has a word of its own: no variant by tone or gender, no flag, clock face or sign with words."""
    words = thing["name"].replace("’", "'").split()
    gendered = thing["group"] == "People & Body" and words[0] in ("man", "woman", "men", "women")
    composed = {"o'clock", "button"} & set(words) or ":" in thing["name"] or "-thirty" in thing["name"]
    plain = thing["group"] not in ("Flags", "clip art") and thing["name"] == thing["base"]
    return plain and thing["split"] == "train" and not gendered and not composed


def is_flag(thing: dict[str, Any]) -> bool:
    """Whether a thing is a flag that is trained on."""
    return thing["group"] == "Flags" and thing["split"] == "train"


def chosen(things: list[dict[str, Any]], drawings: list[dict[str, Any]], part: str) -> set[str]:
    """Slugs of the things of a part."""
    base = {each["slug"] for each in things if is_base(each)}
    if part == "wide":
        return base | {each["slug"] for each in things if is_flag(each)}
    if part != "few" and not part.startswith("most"):
        return base
    artists: dict[str, set[str]] = defaultdict(set)
    trained: dict[str, int] = defaultdict(int)
    for each in drawings:
        if each["slug"] in base and each["artist"] not in ("openmoji", "scene", "clipart"):
            artists[each["slug"]].add(each["artist"])
            trained[each["slug"]] += each["split"] == "train"
    group = {each["slug"]: each["group"] for each in things}
    seven = sorted(slug for slug, found in artists.items() if len(found) == 7 and group[slug] in THINGS)
    few = {slug for slug, found in artists.items() if len(found) == 8} | set(seven[:MANY])
    others = sorted(base - few, key=lambda slug: (-trained[slug], slug))
    return few if part == "few" else few | set(others[: MOST - len(few)])


def select(folder: Path, output: Path, part: str) -> dict[str, int]:
    """Write the part, its files as hard links where those can be had; return what it holds.

    Raises:
        OutputError: `output` exists already.
    """
    refuse_existing(output, "remove it or choose another folder")
    things, drawings, lines = (rows(folder / f"{name}.jsonl") for name in ("things", "pictures", "manifest"))
    wanted, weights = chosen(things, drawings, part), FORMS[part]
    flags = {each["slug"] for each in things if is_flag(each)}
    kept = [
        {**line, "weight": weights[line["form"]] * (FLAG if flags.intersection(line["things"]) else 1.0)}
        for line in lines
        if line["split"] == "train"
        and line["form"] in weights
        and (line["form"] == "words" or set(line["things"]) <= wanted)
    ]
    if "noun" in weights:
        clips = {each["slug"] for each in things if each["group"] == "clip art"}
        kept += [
            {**line, "weight": CLIPART[line["form"]]}
            for line in lines
            if line["form"] in CLIPART and line["things"] and set(line["things"]) <= clips
        ]
    kept += [
        {**line, "weight": 1.0}
        for line in lines
        if line["split"] in ("cell", "rest", "tone")
        and line["form"] in ("alt", "behind")
        and (line["split"] != "cell" or set(line["things"]) <= wanted)
    ]
    shown = {slug for line in kept if line["form"] != "words" for slug in line["things"]}
    # OpenMoji's too, which stand on no page here, for evaluation.
    pictures = [each for each in drawings if each["slug"] in shown and each["artist"] != "scene"]
    working = output.with_name(f".tmp-{output.name}")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    for name in [*(line["page"] for line in kept), *(each["file"] for each in pictures), "LICENSES.md"]:
        (working / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(str(folder / name), str(working / name))
    listed = {
        "manifest": kept,
        "pictures": pictures,
        "things": [each for each in things if each["slug"] in shown],
    }
    for name, found in listed.items():
        (working / f"{name}.jsonl").write_text(dump_jsonl(found), encoding="utf-8")
    working.rename(output)
    return {"names": len(wanted), "pages": len(kept), "pictures": len(pictures)}


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines.

    Raises:
        DataError: a line is no JSON object (`bad_data`).
    """
    return [row for _, row in numbered_objects(path.read_bytes(), path)]


def main() -> None:
    """Select, and say what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("part", choices=sorted(FORMS))
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    try:
        print(json.dumps(select(args.corpus, args.output, args.part)), file=sys.stderr)
    except (Cm3kitError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
