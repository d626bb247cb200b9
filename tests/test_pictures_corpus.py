"""The corpus by many hands, built from packages of two names."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toys import toy

from cm3kit.data.builders import builder
from cm3kit.data.corpus import listing, read_nodes
from cm3kit.data.wordnet import WordNet
from cm3kit.evaluation.judge import Judge
from cm3kit_tokenizers.document import Picture, Text
from cm3kit_tokenizers.errors import ConfigError, DataError, ModelError, OutputError

pytest.importorskip("resvg_py")
APPLE, DOG = "\U0001f34e", "\U0001f436"
SVG = '<path fill="{}" d="M4 4h24v24H4z"/>'
SETS = (
    "noto",
    "noto-v1",
    "twemoji",
    "fluent-emoji-flat",
    "fxemoji",
    "emojione",
    "streamline-emojis",
    "openmoji",
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red apple and a dog face in every set, and three SVG of clip art, one of which shows writing."""
    root = tmp_path_factory.mktemp("packages")
    share, npm = root / "usr/share", root / "npm"
    (share / "unicode/emoji").mkdir(parents=True)
    (share / "unicode/emoji/emoji-test.txt").write_text(
        "# group: Food & Drink\n# subgroup: food-fruit\n1F34E ; fully-qualified # x E0.6 red apple\n"
        "# group: Animals & Nature\n# subgroup: animal\n1F436 ; fully-qualified # x E0.6 dog face\n",
        encoding="utf-8",
    )
    for part in ("annotations", "annotationsDerived"):
        (share / "unicode/cldr/common" / part).mkdir(parents=True)
        rows = f'<annotation cp="{APPLE}">apple | fruit</annotation><annotation cp="{DOG}">dog | pet</annotation>'
        (share / "unicode/cldr/common" / part / "en.xml").write_text(f"<ldml>{rows}</ldml>", encoding="utf-8")
    (share / "wordnet").mkdir()
    gloss = b"00000000 13 n 01 apple 0 000 | fruit with red or yellow skin  \n"
    (share / "wordnet/data.noun").write_bytes(gloss)
    (share / "wordnet/index.noun").write_text("apple n 1 0 1 0 00000000  \n")
    for artist, colour in zip(
        SETS, ("red", "blue", "green", "pink", "gold", "teal", "navy", "black"), strict=True
    ):
        folder = npm / "@iconify-json" / artist
        folder.mkdir(parents=True)
        icons = {name: {"body": SVG.format(colour)} for name in ("red-apple", "dog-face")}
        (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 32, "height": 32}))
    (npm / "@lobehub/fluent-emoji-3d/assets").mkdir(parents=True)
    Image.new("RGBA", (40, 20), "orange").save(npm / "@lobehub/fluent-emoji-3d/assets/1f34e.webp")
    (npm / "emojibase-data/en").mkdir(parents=True)
    tags = [
        {"hexcode": "1F34E", "tags": ["health", "macintosh"]},
        {"hexcode": "1F436", "tags": ["puppy", "pooch"]},
    ]
    (npm / "emojibase-data/en/data.json").write_text(json.dumps(tags))
    clip = share / "openclipart/svg"
    for name, more in (("tools/hammer_01", ""), ("tools/written", "<text>A</text>"), ("shapes/star", "")):
        (clip / name).parent.mkdir(parents=True, exist_ok=True)
        about = f"<dc:title>{Path(name).name} 2</dc:title><rdf:li>tool</rdf:li>"
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:dc="d" xmlns:rdf="r"'
        (clip / f"{name}.svg").write_text(
            f'<svg {spaces} width="32" height="32"><metadata>{about}</metadata>{SVG.format("red")}{more}</svg>'
        )
    return root


@pytest.fixture(scope="module")
def built(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    make = builder("pictures")
    module = sys.modules[make.__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCENES", 40)
        folder = tmp_path_factory.mktemp("corpus") / "pictures"
        return folder, make(packages, folder, lambda done, total: None, 1)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_every_hand_draws_what_its_set_holds(built: tuple[Path, dict[str, Any]]) -> None:
    folder, figures = built
    drawings = rows(folder, "pictures.jsonl")
    assert len(drawings) == figures["pictures"] and figures["not drawn"] == {}
    count = {artist: sum(each["artist"] == artist for each in drawings) for artist in figures["artists"]}
    assert count == {**dict.fromkeys(("noto", "blob", "twemoji", "flat", "fxemoji", "emojione", "streamline"), 2),
                     "fluent": 1, "openmoji": 2, "clipart": 1, "scene": 40}  # fmt: skip
    assert all((folder / each["file"]).is_file() for each in drawings)
    assert {each["split"] for each in drawings if each["artist"] == "openmoji"} == {"openmoji"}
    assert "Twitter" in (folder / "LICENSES.md").read_text()


def test_pages_name_their_picture_and_most_name_it_once(built: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = built
    listed = listing(folder)
    share, once = 0.0, 0.0
    form = {each["page"]: each["form"] for each in rows(folder, "manifest.jsonl")}
    for each in listed:
        nodes = read_nodes(each.path)
        alone = form[str(each.path.relative_to(folder))] in ("words", "noun")
        assert any(isinstance(node, Picture) for node in nodes) != alone, each.path
        words = " ".join(node.content for node in nodes if isinstance(node, Text))
        if each.split == "train" and "apple" in words:
            share += each.weight
            once += each.weight * (words.count("apple") == 1)
    assert once > 0.5 * share > 0
    assert {each.split for each in listed} >= {"train", "openmoji"}
    told = [each.path.read_text() for each in listed if form[str(each.path.relative_to(folder))] == "words"]
    assert any("<title>red apple</title>" in text and "<h1>red apple</h1>" in text for text in told)


def test_held_out_synonyms_caption_nothing(built: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = built
    chance = sys.modules[builder("pictures").__module__].chance
    things = {each["name"]: each for each in rows(folder, "things.jsonl")}
    assert things["red apple"]["synonyms"] and things["hammer"]["keywords"] == ["tool"]
    pages = "\n".join(each.path.read_text() for each in listing(folder))
    for name in ("red apple", "dog face"):
        for word in things[name]["synonyms"]:
            used = f'alt="{word}"' in pages
            assert not (used and chance(f"{name}~{word}") < 64), word


def test_nouns_are_told_twice_and_held_out_ones_never(packages: Path) -> None:
    make = builder("pictures")
    home = make.__module__.rsplit(".", 1)[0]
    nouns, things = (importlib.import_module(f"{home}.{name}") for name in ("nouns", "things"))
    wordnet = WordNet(packages / "usr/share/wordnet")
    pages = [page.content for page in nouns.noun_pages(wordnet, things.read_things(packages))]
    assert (
        len(pages) == 2
        and len(set(pages)) == 2
        and all("ruit with red or yellow skin" in each for each in pages)
    )
    assert any(each.count("apple") == 2 for each in pages)
    for name, definition in (("apple", ""), ("pome", "fruit with red or yellow skin")):
        held = things.Thing("a", name, name, "Food & Drink", "rest", 1.0, definition=definition)
        assert not list(nouns.noun_pages(wordnet, [held])), name
        trained = dataclasses.replace(held, split="train")
        assert len(list(nouns.noun_pages(wordnet, [trained]))) == 2


def test_what_is_missing_is_named_and_nothing_is_overwritten(packages: Path, tmp_path: Path) -> None:
    known = "emoji, entity-pages, pictures, summaries, task-pages"
    with pytest.raises(ConfigError, match=f"unknown corpus 'nothing'; known: {known}"):
        builder("nothing")
    make = builder("pictures")
    (tmp_path / "full").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        make(packages, tmp_path / "full", lambda done, total: None, 1)
    with pytest.raises(DataError, match="wordnet-base"):
        make(tmp_path, tmp_path / "new", lambda done, total: None, 1)
    assert not (tmp_path / "new").exists()


def test_a_part_holds_its_names_and_forms_alone(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = built
    script = Path(__file__).parents[1] / "checkpoints/pictures/part.py"
    for part in (
        "few",
        "most",
        "most-wide",
        "most-told",
        "most-by",
        "most-words",
        "most-nouns",
        "most-last",
        "names",
        "base",
        "wide",
    ):
        target = tmp_path / part
        command = [sys.executable, str(script), str(folder), part, "-o", str(target)]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        listed, lines = listing(target), rows(target, "manifest.jsonl")
        assert (
            json.loads(told.stderr) == {"names": 2, "pages": len(lines), "pictures": 17} and not told.stdout
        )
        trained = [each for each in lines if each["split"] == "train"]
        forms = {each["form"] for each in trained}
        shown = {slug for each in trained if each["form"] not in ("words", "noun") for slug in each["things"]}
        assert shown == {"red-apple", "dog-face"} == {each["slug"] for each in rows(target, "things.jsonl")}
        assert ("synonym" in forms) == (
            part
            in ("most-wide", "most-told", "most-by", "most-words", "most-nouns", "most-last", "base", "wide")
        )
        assert ("words" in forms) == (
            part in ("most-told", "most-by", "most-words", "most-nouns", "most-last")
        )
        assert ("noun" in forms) == (part in ("most-nouns", "most-last"))
        assert all(read_nodes(each.path) and "scene/" not in each.path.read_text() for each in listed)
        assert all((target / each["file"]).is_file() for each in rows(target, "pictures.jsonl"))
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "exists already" in again.stderr and "Traceback" not in again.stderr


def test_what_a_model_can_do_is_measured_on_the_corpus(
    built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = built
    script = Path(__file__).parents[1] / "benchmarks/quality_hands.py"
    judge = Judge(["red apple", "dog face"], ["noto", "twemoji"])
    judge.save(tmp_path)
    known = (tmp_path / "judge.json").read_text()
    (tmp_path / "judge.json").write_text(known.replace('"stride": 2', '"stride": 1'))
    with pytest.raises(ModelError, match="train it again"):
        Judge.load(tmp_path)
    (tmp_path / "judge.json").write_text(known)
    command = [
        sys.executable,
        str(script),
        "--model",
        str(toy()),
        "--data",
        str(folder),
        "--judge",
        str(tmp_path),
    ]
    told = subprocess.run([*command, "--names", "1", "--json"], capture_output=True, text=True, check=True)
    found = {row["what"]: row for row in json.loads(told.stdout)}
    assert found["-n 4: three different"]["n"] == 1 and found["captions exact: OpenMoji"]["n"] == 1
    # A judge of two names has each of them among its first five.
    assert found["drawn, judge's top-5: seen names"]["value"] == 1 and len(found) > 12
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in found.values())
