"""Recipes that files carry, and files made again by them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from toys import toy, toy_model

from cm3kit.images import SOURCE_TYPE, encode_png
from cm3kit.provenance.outputs import mark_html
from cm3kit.provenance.recipes import listed_files, read_recipe, sidecar
from cm3kit.provenance.reproducing import compare
from cm3kit.provenance.sources import page_of, sha256
from cm3kit_cli.main import run
from cm3kit_tokenizers import DataError, Page

PAGE = (
    '<!DOCTYPE html><title>Früchte</title>\r\n<p class="intro">Old & known.</p><p>A <mask> pear.</p>'
    '<img src="pear.png" alt="<mask>"><img src="<mask>" alt="x">'
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of every kind of output, in a folder beside the model and the page."""
    home = tmp_path_factory.mktemp("reproduce")
    (home / "page").mkdir()
    (home / "page/page.html").write_bytes(PAGE.encode())
    Image.effect_noise((24, 20), 90).convert("RGB").save(home / "page/pear.png")
    short = [*model(), "--max-tokens", "12", "--seed", "5"]
    picture, page, out = str(home / "page/pear.png"), str(home / "page/page.html"), str(home / "out")
    region = ["--image", "pear.png", "--box", "0,0,12,12"]
    commands = [
        ["generate", "red apple", "-n", "3", "-o", f"{out}/pictures/"],
        ["generate", "pear", "--decoder", "diffusion", "--steps", "3", "--remasker", "remdm-cap", "-o", f"{out}/d.png"],
        ["generate", "--task", "pair", "-o", f"{out}/pair.png"],
        ["generate", "--task", "text", "red apple", "-n", "2", "-o", f"{out}/words.txt"],
        ["generate", "--task", "caption", picture, "-o", f"{out}/caption.txt"],
        ["generate", "--task", "document", "red apple", "-o", f"{out}/page.html"],
        ["infill", page, "--variants", "2", "-o", f"{out}/filled/"],
        ["infill", page, "--select", "p.intro", *region, "-o", f"{out}/filled.html"],
        ["infill", page, "--decoder", "diffusion", "-o", f"{out}/in-place.html"],
    ]  # fmt: skip
    for command in commands:
        assert run([*command, *short]) == 0
    return home


@pytest.fixture
def home(outputs: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(outputs, tmp_path / "home", dirs_exist_ok=True)
    return tmp_path / "home"


def model() -> list[str]:
    return ["-m", str(toy()), "-q"]


def files_of(home: Path) -> list[Path]:
    single = [path for path in sorted((home / "out").glob("*.*")) if not path.name.endswith(".cm3kit.json")]
    return [*single, *listed_files(home / "out/pictures"), *listed_files(home / "out/filled")]


def test_every_kind_of_output_is_made_again_byte_for_byte(outputs: Path, capsys: Capture) -> None:
    files = files_of(outputs)
    assert len(files) == 13
    assert run(["reproduce", *map(str, files), "--check", "--json", *model()]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert {each["verdict"] for each in data["files"]} == {"same"} and data["equal"] == len(files)


def test_every_recipe_names_model_seed_versions_and_the_mark(outputs: Path) -> None:
    for path in files_of(outputs):
        recipe = read_recipe(path)
        assert {
            "task",
            "seed",
            "index",
            "sampler",
            "decoder",
            "sha256",
            "version",
            "torch",
            "threads",
        } <= set(recipe.made)
        assert recipe.made["digital_source_type"] == SOURCE_TYPE and not recipe.changed
        assert {"decoder/model.safetensors", "text/tokenizer.json"} <= set(recipe.made["sha256"])
        assert recipe.marked or path.suffix == ".txt" or recipe.made["task"] == "infill"


def test_the_source_of_a_filled_page_comes_back_whole(outputs: Path) -> None:
    path = outputs / "out/filled.html"
    recipe = read_recipe(path)
    page = page_of(recipe.made["source"], recipe.content, path.parent)
    wanted = Page.parse(PAGE.encode(), outputs / "page").select("p.intro").region("pear.png", (0, 0, 12, 12))
    assert page.data == wanted.data and page.gaps == wanted.gaps
    assert page.base is not None and page.base.resolve() == wanted.base
    with pytest.raises(DataError, match="changed after it was written"):
        page_of(recipe.made["source"], recipe.content.replace(b"DOCTYPE", b"doctype"), path.parent)


def test_a_difference_is_told_in_one_line_with_status_1(home: Path, capsys: Capture) -> None:
    path = home / "out/pictures/000001-s5.png"
    with Image.open(path) as picture:
        changed = picture.convert("RGB")
        changed.putpixel((3, 4), tuple(255 - each for each in changed.getpixel((3, 4))))  # type: ignore[union-attr]
    path.write_bytes(encode_png(changed, read_recipe(path).made))
    assert run(["reproduce", str(path), "--check", *model()]) == 1
    out, err = capsys.readouterr()
    assert out == f"differs {path}: 1 of 256 pixels; model, versions and machine are those of the recipe\n"
    assert not err


def test_another_model_is_named_as_the_reason(home: Path, capsys: Capture) -> None:
    other = toy_model(home / "other", seed=1)
    assert run(["reproduce", str(home / "out/pictures"), "--check", "-m", str(other), "-q"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("another model: sha256 of decoder/" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("words-0000.txt", b"\n", b"!\n", "changed after it was written"),
        ("filled.html", b"Fr\xc3\xbcchte", b"Obst", "changed after it was written"),
        ("page.html", b"<title>", b"<TITLE>", "from byte"),
    ],
)
def test_edited_files_differ(
    home: Path, capsys: Capture, name: str, old: bytes, new: bytes, reason: str
) -> None:
    path = home / "out" / name
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    assert run(["reproduce", str(path), "--check", *model()]) == 1
    assert reason in capsys.readouterr().out


def test_another_picture_beside_the_source_is_noticed(home: Path, capsys: Capture) -> None:
    Image.new("RGB", (24, 20), "red").save(home / "page/pear.png")
    assert run(["reproduce", str(home / "out/filled.html"), "--check", *model()]) == 1
    assert "the picture 'pear.png' of its source" in capsys.readouterr().out


def test_a_file_is_written_again(home: Path, capsys: Capture) -> None:
    files = [str(home / "out/d.png"), str(home / "out/filled.html")]
    assert run(["reproduce", *files, "-o", str(home / "again/"), *model()]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(home / "again/d.png"),
        str(home / "again/filled.html"),
    ]
    for name in ("d.png", "filled.html"):
        assert (home / "again" / name).read_bytes() == (home / "out" / name).read_bytes()
    assert run(["reproduce", *files, "-o", str(home / "again/"), *model()]) == 1
    assert "[exists]" in capsys.readouterr().err


def test_info_prints_the_recipe(outputs: Path, capsys: Capture) -> None:
    assert run(["info", str(outputs / "out/d.png")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("prompt: pear\nseed: 5\n") and "settings steps: 3\n" in out and SOURCE_TYPE in out
    assert "sha256" not in out
    assert run(["info", str(outputs / "out/d.png"), "-v"]) == 0
    assert "sha256 decoder/model.safetensors: " in capsys.readouterr().out
    assert run(["info", str(outputs / "out/filled/000001.html"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["data"]
    assert (told["task"], told["index"], told["found_in"], told["changed"]) == (
        "infill",
        1,
        "manifest",
        False,
    )


def test_without_prompt_metadata_only_the_mark_stays(outputs: Path, tmp_path: Path, capsys: Capture) -> None:
    bare = ["--no-prompt-metadata", "--max-tokens", "8", *model(), "--seed", "1"]
    page = str(outputs / "page/page.html")
    assert run(["generate", "secret", "-o", str(tmp_path / "x.png"), *bare]) == 0
    assert run(["generate", "secret", "--task", "document", "-o", str(tmp_path / "x.html"), *bare]) == 0
    assert run(["generate", "secret", "--task", "text", "-o", str(tmp_path / "x.txt"), *bare]) == 0
    assert run(["infill", page, "-o", str(tmp_path / "y.html"), *bare]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"x.png", "x.html", "x.txt", "y.html"}
    for name in ("x.png", "x.html"):
        recipe = read_recipe(tmp_path / name)
        assert recipe.marked and not recipe.made
    capsys.readouterr()
    assert run(["reproduce", str(tmp_path / "x.png"), *model()]) == 1
    assert "[no_recipe]" in capsys.readouterr().err
    assert run(["info", str(tmp_path / "x.txt")]) == 1
    assert "[no_recipe]" in capsys.readouterr().err


def test_a_page_filled_in_place_gets_nothing_beside_it(home: Path) -> None:
    page = home / "page/page.html"
    assert run(["infill", str(page), "--in-place", "--max-tokens", "8", "--seed", "1", *model()]) == 0
    assert not sidecar(page).exists()


@pytest.mark.parametrize("row", ['{"path": "../x.png"}', '{"path": "x.png"', "[]", '{"path": 3}'])
def test_hostile_manifests_name_no_file(tmp_path: Path, row: str) -> None:
    (tmp_path / "manifest.jsonl").write_text(row + "\n")
    with pytest.raises(DataError, match="names no file"):
        listed_files(tmp_path)


def test_rows_of_many_processes_take_what_is_common_from_the_newest_one(tmp_path: Path) -> None:
    (tmp_path / "files/000").mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    path = tmp_path / "files/000/000002-1.txt"
    path.write_bytes(b"words\n")
    common = {
        "model": "toy",
        "sha256": {"a": "b"},
        "options": {"temperature": 1, "top_k": 3},
        "task": "infill",
    }
    (tmp_path / "runs/sample-1.json").write_text(json.dumps({**common, "model": "old"}))
    (tmp_path / "runs/sample-2.json").write_text(json.dumps(common))
    row = {
        "path": "files/000/000002-1.txt",
        "sha256": sha256(b"words\n"),
        "task": "text",
        "index": 1,
        "sample": 5,
    }
    (tmp_path / "manifest.jsonl").write_text(json.dumps({**row, "options": {"top_k": 4}}) + "\n{torn")
    recipe = read_recipe(path)
    assert recipe.changed is False and listed_files(tmp_path) == [path]
    assert recipe.made["options"] == {"temperature": 1, "top_k": 4} and recipe.made["sha256"] == {"a": "b"}
    assert (recipe.made["task"], recipe.made["index"], recipe.made["model"]) == ("text", 5, "toy")


def test_a_page_that_only_another_version_marked_is_the_same_page() -> None:
    old, new = (mark_html("<!DOCTYPE html><p>x</p>", {"version": each}).encode() for each in ("1", "2"))
    assert compare(old, new)[0] == "marked" and compare(old, old)[0] == "same"
    assert compare(old, new.replace(b"<p>", b"<b>"))[0] == "differs"
