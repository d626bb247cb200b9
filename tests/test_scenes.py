"""Icon sets, pictures that a corpus lists, and scenes put together from drawings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cm3kit.data import scenes
from cm3kit.data.iconify import IconSet, plain, render, slug, squared
from cm3kit.data.pictures import load_pictures
from cm3kit_tokenizers.errors import DataError
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig

RED = '<path fill="#f00" d="M0 0h8v8H0z"/>'


def icon_set(folder: Path) -> IconSet:
    icons = {"red-square": {"body": RED, "width": 8, "height": 8}, "small-blue-diamond": {"body": RED}}
    known = {
        "icons": icons,
        "aliases": {"rouge": {"parent": "red-square", "width": 4}},
        "width": 36,
        "height": 36,
    }
    (folder / "icons.json").write_text(json.dumps(known))
    (folder / "chars.json").write_text(json.dumps({"1f7e5-fe0f": "red-square", "1f539": "rouge"}))
    return IconSet(folder)


def test_icons_are_found_by_code_points_and_by_names(tmp_path: Path) -> None:
    icons = icon_set(tmp_path)
    assert icons.find((0x1F7E5,), "x") == "red-square" and icons.find((0x1F539, 0xFE0F)) == "rouge"
    assert icons.find((1,), "Small Blue’s", "small blue diamond") == "small-blue-diamond"
    assert icons.find((1,), "smallbluediamond") == "small-blue-diamond" and icons.find((1,), "green") is None
    assert 'viewBox="0 0 4 8"' in icons.svg("rouge") and RED in icons.svg("rouge")
    assert 'viewBox="0 0 36 36"' in icons.svg("small-blue-diamond")
    assert plain((1, 0xFE0F, 2)) == (1, 2) and slug("Fish & Chips’ “x”") == "fish-chips-x"


def test_a_folder_without_icons_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no icons\.json"):
        IconSet(tmp_path)
    (tmp_path / "icons.json").write_text("[]")
    with pytest.raises(DataError, match="not an icon set"):
        IconSet(tmp_path)


def test_svg_is_drawn_with_its_transparency(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    drawn = render(icon_set(tmp_path).svg("small-blue-diamond"), 36)
    assert (
        drawn.size == (36, 36)
        and drawn.getpixel((3, 3)) == (255, 0, 0, 255)
        and drawn.getpixel((20, 20))[3] == 0
    )
    with pytest.raises(DataError, match="cannot be drawn"):
        render("<svg>", 8)


def test_pictures_are_squared_in_the_middle() -> None:
    out = squared(Image.new("RGB", (40, 20), "red"), 20)
    assert (
        out.size == (20, 20) and out.getpixel((10, 10)) == (255, 0, 0, 255) and out.getpixel((10, 1))[3] == 0
    )


@pytest.fixture
def sprites(tmp_path: Path) -> list[scenes.Sprite]:
    made = []
    for name, colour in (
        ("apple", "red"),
        ("cherry", "red"),
        ("box", "blue"),
        ("fox", "orange"),
        ("red car", "red"),
    ):
        Image.new("RGBA", (32, 32), colour).save(tmp_path / f"{name}.png")
        made.append(scenes.Sprite(name, "me", f"{name}.png", "MIT"))
    return made


def test_scenes_depend_on_their_number_alone_and_show_what_they_say(
    tmp_path: Path, sprites: list[scenes.Sprite]
) -> None:
    made = scenes.make(tmp_path, sprites, 60, 32)
    assert made[:20] == scenes.make(tmp_path, sprites, 20, 32, workers=2)
    for scene in made:
        with Image.open(tmp_path / scene.file) as picture:
            assert picture.size == (32, 32)
        for part in scene.parts:
            left, top, right, bottom = part["box"]
            assert right - left == bottom - top >= 12
            assert part["name"].split()[-1][:3] in scene.caption
        names = {part["name"] for part in scene.parts}
        held = len(names) == 2 and scenes.is_held_out(*names)
        assert scene.split == ("scene" if held else "train")
    assert {len(scene.parts) for scene in made} >= {1, 2}
    assert not any("green red car" in scene.caption or "blue red car" in scene.caption for scene in made)


def test_held_out_pairs_are_the_same_either_way_round() -> None:
    pairs = [(f"thing {a}", f"thing {b}") for a in range(40) for b in range(a)]
    held = [scenes.is_held_out(*pair) for pair in pairs]
    assert held == [scenes.is_held_out(b, a) for a, b in pairs] and 0.03 < sum(held) / len(held) < 0.1


def test_words_have_articles_and_plurals() -> None:
    assert [scenes.a(word) for word in ("apple", "box")] == ["an apple", "a box"]
    assert [scenes.several(word) for word in ("apple", "box", "cherry", "key", "peach")] == [
        "apples", "boxes", "cherries", "keys", "peaches",
    ]  # fmt: skip


def test_recolouring_turns_the_main_hue_and_leaves_greys() -> None:
    sprite = Image.new("RGBA", (8, 8), (220, 20, 20, 255))
    sprite.paste((120, 120, 120, 255), (0, 0, 8, 3))
    out = scenes.recoloured(sprite, "blue")
    red, green, blue, alpha = out.getpixel((4, 6))
    assert blue > 180 and red < 100 and alpha == 255 and green < 130
    assert out.getpixel((4, 1)) == (120, 120, 120, 255)


def test_a_corpus_may_list_its_pictures(tmp_path: Path) -> None:
    with_split = [("a", "train", 2.0), ("b", "cell", 1.0)]
    for name, _, _ in with_split:
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / f"{name}.webp")
    rows = [{"file": f"{name}.webp", "split": split, "weight": weight} for name, split, weight in with_split]
    (tmp_path / "pictures.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = ImageTokenizerConfig(
        resolution=8, channels=(4, 4), codes=16, code_dim=4, latent_channels=4, norm_groups=2, attention=False
    )
    found = load_pictures(tmp_path, ImageTokenizer(config))
    assert found.weights_B.tolist() == [2.0, 0.0] and found.names == ("a.webp", "b.webp")
    assert int(found.pixels_BCHW.min()) == 255  # over white
    (tmp_path / "pictures.jsonl").write_text('{"file": "a.webp"}')
    with pytest.raises(DataError, match="not a picture with split and weight"):
        load_pictures(tmp_path, ImageTokenizer(config))
