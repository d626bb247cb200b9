"""The picture dictionary: names, what is held out, definitions, forms, and the whole build from tiny packages."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from cm3kit.data import forms
from cm3kit.data.dictionary import CLDR, FONT, NAMES, WORDNET, Entry, build_emoji, load_entries, stats
from cm3kit.data.names import COMPOSED, Name, read_keywords, read_names, splits
from cm3kit.data.noto import BitmapFont, _ligatures, on_white
from cm3kit.data.wordnet import WordNet, head_words
from cm3kit_tokenizers import Page
from cm3kit_tokenizers.document import Picture, Text
from cm3kit_tokenizers.errors import Cm3kitError, DataError, OutputError

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONE_CODES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
HANDS = [f"hand {index}" for index in range(60)]


def emoji_test() -> str:
    """A file in the format of Unicode's emoji-test.txt."""
    lines = ["# emoji-test.txt", "# group: Food & Drink", "# subgroup: food-fruit"]
    lines += [
        "1F34E ; fully-qualified # \U0001f34e E0.6 red apple",
        "1F34E FE0F ; unqualified # x E0.6 red apple",
    ]
    lines += [f"{0x1F400 + i:X} ; fully-qualified # x E1.0 sign {i}" for i in range(150)]
    lines += ["1F552 ; fully-qualified # x E0.6 three o’clock", "1F499 ; fully-qualified # x E0.6 blue heart"]
    lines += ["", "# group: Component", "# subgroup: skin-tone"]
    lines += [
        f"{code} ; component # x E1.0 {tone} skin tone" for tone, code in zip(TONES, TONE_CODES, strict=True)
    ]
    lines += ["# group: People & Body", "# subgroup: hands"]
    for index, hand in enumerate(HANDS):
        lines.append(f"{0xE000 + index:X} ; fully-qualified # x E1.0 {hand}")
        for tone, code in zip(TONES, TONE_CODES, strict=True):
            lines.append(f"{0xE000 + index:X} {code} ; fully-qualified # x E1.0 {hand}: {tone} skin tone")
    lines.append("E000 1F3FB E001 1F3FF ; fully-qualified # x E1.0 shake: light skin tone, dark skin tone")
    lines.append("E000 1F3FD 200D E002 ; fully-qualified # x E1.0 man: medium skin tone, red hair")
    lines += ["# group: Flags", "# subgroup: flag", "0023 FE0F 20E3 ; fully-qualified     # #️⃣ E0.6 keycap: #"]
    return "\n".join(lines) + "\n"


@pytest.fixture
def names(tmp_path: Path) -> list[Name]:
    (tmp_path / "emoji-test.txt").write_text(emoji_test(), encoding="utf-8")
    return read_names(tmp_path / "emoji-test.txt")


def test_names_are_read_with_their_groups(names: list[Name]) -> None:
    by_name = {each.name: each for each in names}
    assert len(by_name) == len(names) == 1 + 150 + 2 + 5 + 60 * 6 + 2 + 1
    assert by_name["red apple"] == Name("red apple", "\U0001f34e", "Food & Drink", "food-fruit")
    assert by_name["three o'clock"].codepoints == (0x1F552,)
    assert by_name["keycap: #"].codepoints == (0x23, 0xFE0F, 0x20E3) and by_name["keycap: #"].group == "Flags"
    assert by_name["dark skin tone"].subgroup == "skin-tone"


def test_tones_and_bases_of_names(names: list[Name]) -> None:
    by_name = {each.name: (each.base, each.tones) for each in names}
    assert by_name["hand 3: medium-light skin tone"] == ("hand 3", ("medium-light",))
    assert by_name["shake: light skin tone, dark skin tone"] == ("shake", ("light", "dark"))
    assert by_name["man: medium skin tone, red hair"] == ("man: red hair", ("medium",))
    assert by_name["keycap: #"] == ("keycap: #", ())
    assert by_name["hand 3"] == ("hand 3", ())


def held_out(name: str) -> str:
    """What the rule says, written once more: names of this file alone."""
    base, _, tone = name.partition(": ")
    if base in HANDS and tone:
        first, second = hashlib.sha256(base.encode("utf-8")).digest()[:2]
        return "tone" if first < 51 and tone == f"{TONES[second % 5]} skin tone" else "train"
    composed = (
        "green circle", "purple square", "blue heart", "orange heart", "red square", "six-thirty",
        "three o'clock", "nine-thirty", "twelve o'clock",
    )  # fmt: skip
    if name.replace("’", "'") in composed or hashlib.sha256(name.encode("utf-8")).digest()[0] < 13:
        return "rest"
    return "train"


def test_what_is_held_out_follows_the_rule(names: list[Name]) -> None:
    found = splits(names)
    assert found == {each.name: held_out(each.name) for each in names}
    assert set(found.values()) == {"train", "tone", "rest"}
    assert found["three o'clock"] == found["blue heart"] == "rest"


def test_an_apostrophe_typed_otherwise_holds_out_the_same_names() -> None:
    clocks = [name for name in COMPOSED if "'" in name]
    assert len(clocks) == 2 and len(COMPOSED) == 9
    plain = [f"o'{index}" for index in range(400)]
    curly = {name for name in plain if hashlib.sha256(name.replace("'", "’").encode()).digest()[0] < 13}
    straight = {name for name in plain if hashlib.sha256(name.encode()).digest()[0] < 13}
    assert curly != straight
    found = splits([Name(name, "x", "g", "s") for name in (*plain, *clocks)])
    assert {name for name, split in found.items() if split == "rest"} == curly | straight | set(clocks)


def test_a_tone_is_held_out_only_of_bases_in_all_five(names: list[Name]) -> None:
    found = splits(names)
    chosen = next(
        hand for hand in HANDS if any(found[f"{hand}: {tone} skin tone"] == "tone" for tone in TONES)
    )
    held = next(tone for tone in TONES if found[f"{chosen}: {tone} skin tone"] == "tone")
    missing = next(tone for tone in TONES if tone != held)
    fewer = [each for each in names if each.name != f"{chosen}: {missing} skin tone"]
    assert splits(fewer)[f"{chosen}: {held} skin tone"] in ("train", "rest")


def test_missing_packages_are_named(tmp_path: Path) -> None:
    for read, package in (
        (lambda: read_names(tmp_path / "none.txt"), "unicode-data"),
        (lambda: read_keywords(tmp_path), "unicode-cldr-core"),
        (lambda: WordNet(tmp_path), "wordnet-base"),
        (lambda: BitmapFont(tmp_path / "none.ttf"), "fonts-noto-color-emoji"),
        (lambda: load_entries(tmp_path), "make data"),
    ):
        with pytest.raises(DataError, match=package) as caught:
            read()
        assert caught.value.code == "no_file"


def write_keywords(folder: Path) -> None:
    for part, body in (
        ("annotationsDerived", '<annotation cp="\U0001f34e">derived</annotation>'),
        ("annotations", '<annotation cp="\U0001f34e">apple | fruit|red</annotation>'
         '<annotation cp="\U0001f34e" type="tts">red apple</annotation><annotation cp="#"></annotation>'),
    ):  # fmt: skip
        (folder / part).mkdir(parents=True)
        (folder / part / "en.xml").write_text(
            f"<ldml><annotations>{body}</annotations></ldml>", encoding="utf-8"
        )


def test_keywords_are_those_of_the_main_file_first(tmp_path: Path) -> None:
    write_keywords(tmp_path)
    assert read_keywords(tmp_path) == {"\U0001f34e": ("apple", "fruit", "red")}


def write_wordnet(folder: Path) -> None:
    """Four synsets; the tree first, so that `apple` without keywords means the tree."""
    synsets = [
        ("fruit", ["fruit", "yield"], [], "the ripened body of a seed plant"),
        ("tree", ["apple", "apple_tree"], ["plant"], 'native tree of "orchards"; "he fell from it"'),
        ("plant", ["plant", "flora"], [], "a living thing"),
        ("pome", ["apple"], ["fruit"], "fruit with red or yellow or green skin; white flesh; \"an apple a day\""),
        ("berry", ["berry"], ["fruit"], "a small fruit"),
    ]  # fmt: skip
    licence = b"  1 This is a licence\n  2 of two lines\n"

    def line(each: tuple[str, list[str], list[str], str], offsets: dict[str, int]) -> bytes:
        key, words, parents, gloss = each
        links = [("~", "plant")] * (key == "fruit") + [("@", parent) for parent in parents]
        spelt = " ".join(f"{word} 0" for word in words)
        pointers = "".join(f" {sign} {offsets.get(to, 0):08d} n 0000" for sign, to in links)
        head = f"{offsets.get(key, 0):08d} 13 n {len(words):02x} {spelt} {len(links):03d}{pointers}"
        return f"{head} | {gloss}  \n".encode()

    offsets: dict[str, int] = {}
    for _ in range(2):  # offsets have a fixed width, so the second round is right
        place = len(licence)
        for each in synsets:
            offsets[each[0]] = place
            place += len(line(each, offsets))
    folder.mkdir(parents=True)
    (folder / "data.noun").write_bytes(licence + b"".join(line(each, offsets) for each in synsets))
    index = {"apple": ["tree", "pome"], "fruit": ["fruit"], "berry": ["berry"], "apple_tree": ["tree"]}
    lines = [
        f"{lemma} n {len(keys)} 1 @ {len(keys)} 0 {' '.join(f'{offsets[key]:08d}' for key in keys)}  \n"
        for lemma, keys in index.items()
    ]
    (folder / "index.noun").write_bytes(licence + "".join(lines).encode())


def test_wordnet_is_read_by_offset(tmp_path: Path) -> None:
    write_wordnet(tmp_path / "wordnet")
    wordnet = WordNet(tmp_path / "wordnet")
    tree, pome = wordnet.senses("Apple")
    assert tree.definition == 'native tree of "orchards"'
    assert tree.words == ("apple", "apple tree") and tree.kind_of == "plant"
    assert (
        pome.definition == "fruit with red or yellow or green skin; white flesh" and pome.kind_of == "fruit"
    )
    assert wordnet.senses("berries")[0].definition == "a small fruit"
    assert wordnet.senses("apple trees") == [tree]
    assert (
        len({each.definition for each in wordnet.all()}) == len([*wordnet.all()]) >= 3
        and tree in wordnet.all()
    )
    assert wordnet.senses("fruit")[0].kind_of is None and wordnet.senses("pear") == []
    assert wordnet.best("apple", ()) == tree
    assert wordnet.best("apple", ("red fruit",)) == pome
    assert wordnet.best("big green apple with a worm", ("skin",)) == pome
    assert wordnet.best("pear", ("fruit",)) is None


def test_head_words_end_at_the_first_preposition_or_participle() -> None:
    assert head_words("grinning cat with smiling eyes") == ["grinning", "cat"]
    assert head_words("man running uphill") == ["man"]
    assert head_words("king") == ["king"] and head_words("") == []


def entry(slug: str, name: str, **more: Any) -> Entry:
    given: dict[str, Any] = {
        "slug": slug, "name": name, "base": name, "characters": "x", "group": "Food & Drink",
        "subgroup": "s", "keywords": ("a<b", "c&d"), "definition": 'it\'s "so" <b> & more', "kind_of": "odd <thing>",
        "related": (), "split": "train", "weight": 1.0,
    } | more  # fmt: skip
    return Entry(**given)


EVIL = "<b>\"&amp; 'x' </title><img src=y> >"
WORDS = {
    "one": entry("one", EVIL, related=("two", "three", "four")),
    "two": entry("two", "plain", definition="", kind_of="", keywords=()),
    "three": entry("three", "</h1>", related=("one",)),
    "four": entry("four", "z", kind_of="two"),
}


def _calm(slug: str, word: Entry) -> Entry:
    return entry(
        slug, "n", related=word.related, definition=word.definition and "d", keywords=word.keywords and ("w",),
        kind_of=word.kind_of if word.kind_of in WORDS else word.kind_of and "k",
    )  # fmt: skip


@pytest.mark.parametrize("slug", list(WORDS))
@pytest.mark.parametrize("form", list(forms.FORMS))
def test_every_form_holds_the_name_and_the_picture_and_nothing_else_escapes(form: str, slug: str) -> None:
    word = WORDS[slug]
    html = forms.pages(word, WORDS)[form]
    page = Page.parse(html.encode())
    nodes = page.nodes()
    texts = [node.content for node in nodes if isinstance(node, Text)]
    pictures = [node.src for node in nodes if isinstance(node, Picture)]
    assert not page.gaps
    assert any(word.name in text for text in texts)
    shown = [f"pictures/{word.slug}.png"]
    if form == "shelf":
        other = word.related[0] if word.related else word.slug
        assert sorted(pictures) == sorted([*shown, f"pictures/{other}.png"])
        assert any(WORDS[other].name in text for text in texts)
    else:
        assert pictures == shown
    if form in ("entry", "article") and word.definition:
        assert any(word.definition[1:] in text for text in texts)
    # No markup of the name's: the same page about a harmless name has the same nodes but for texts.
    calm = {key: _calm(key, each) for key, each in WORDS.items()}
    plain = Page.parse(forms.pages(calm[slug], calm)[form].encode()).nodes()
    assert [node for node in plain if not isinstance(node, Text)] == [
        node for node in nodes if not isinstance(node, Text)
    ]


@pytest.mark.parametrize("form", ["entry", "article"])
def test_a_kind_is_a_link_only_if_it_has_a_page(form: str) -> None:
    words = {
        "one": entry("one", "one", kind_of="two words"),
        "two-words": entry("two-words", "x", kind_of="edible fruit"),
        "three": entry("three", "x", kind_of=""),
    }
    ending = {slug: forms.pages(word, words)[form].partition("more.")[2] for slug, word in words.items()}
    link = '<a href="two-words.html" title="two words">two words</a>'
    assert ending["one"].startswith(f" A kind of {link}.</p>\n")
    assert ending["two-words"].startswith(" A kind of edible fruit.</p>\n")
    assert ending["three"].startswith("</p>\n")


def test_every_form_has_its_share() -> None:
    assert forms.SHARES.keys() == forms.FORMS.keys()
    assert sum(forms.SHARES.values()) == pytest.approx(1)


def stub_font(rules: dict[str, list[tuple[list[str], str]]]) -> Any:
    """A font object with one extension lookup of ligatures."""
    ligatures = {
        first: [SimpleNamespace(Component=rest, LigGlyph=result) for rest, result in each]
        for first, each in rules.items()
    }
    table = SimpleNamespace(ExtSubTable=SimpleNamespace(ligatures=ligatures))
    lookups = [SimpleNamespace(SubTable=[SimpleNamespace(mapping={})]), SimpleNamespace(SubTable=[table])]
    return {"GSUB": SimpleNamespace(table=SimpleNamespace(LookupList=SimpleNamespace(Lookup=lookups)))}


def test_ligatures_are_longest_first() -> None:
    found = _ligatures(stub_font({"a": [(["b"], "ab"), (["b", "c"], "abc")], "ab": [(["d"], "abd")]}))
    assert [rule[0] for rule in found["a"]] == [["a", "b", "c"], ["a", "b"]]
    font = BitmapFont.__new__(BitmapFont)
    font._ligatures = found
    assert font._shape(["a", "b", "c", "a", "b", "d", "a"]) == ["abc", "abd", "a"]


def test_pictures_are_padded_on_white() -> None:
    wide = Pillow.new("RGBA", (20, 10), (255, 0, 0, 255))
    made = np.asarray(on_white(wide, 40))
    assert made.shape == (40, 40, 3)
    assert made[20, 20].tolist() == [255, 0, 0] and made[2, 20].tolist() == [255, 255, 255]
    half = np.asarray(on_white(Pillow.new("RGBA", (10, 10), (0, 0, 0, 128)), 10))
    assert abs(int(half[5, 5, 0]) - 127) <= 1


GLYPHS = {
    "apple": (0x1F34E, "red"), "heart": (0x1F499, "blue"), "hand": (0xE000, "orange"), "clock": (0x1F552, "white"),
    "tone": (0x1F3FD, None), "vs": (0xFE0F, None), "hash": (0x23, None), "cap": (0x20E3, None),
    "hand_tone": (None, "brown"), "hash_cap": (None, "black"), "bare": (0x1F400, None),
}  # fmt: skip


def write_font(path: Path) -> None:
    """A font with pictures in CBDT and ligatures in GSUB, as Noto Color Emoji has them."""
    from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
    from fontTools.fontBuilder import FontBuilder
    from fontTools.ttLib import newTable
    from fontTools.ttLib.tables._g_l_y_f import Glyph
    from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
    from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
    from fontTools.ttLib.tables.E_B_L_C_ import (
        BitmapSizeTable,
        SbitLineMetrics,
        Strike,
        eblc_index_sub_table_1,
    )

    order = [".notdef", *GLYPHS]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({code: name for name, (code, _) in GLYPHS.items() if code is not None})
    builder.setupGlyf({name: Glyph() for name in order})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in order})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Toy", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    font = builder.font
    addOpenTypeFeaturesFromString(
        font, "feature ccmp { sub hand tone by hand_tone; sub hash cap by hash_cap; } ccmp;"
    )
    drawn = {name: colour for name, (_, colour) in GLYPHS.items() if colour is not None}
    data, location = newTable("CBDT"), newTable("CBLC")
    data.version = location.version = 3.0
    bitmaps: dict[str, Any] = {}
    for name, colour in drawn.items():
        buffer = io.BytesIO()
        Pillow.new("RGBA", (13, 12), colour).save(buffer, "PNG")
        bitmap = cbdt_bitmap_format_17(b"", font)
        bitmap.metrics = SmallGlyphMetrics()
        bitmap.metrics.height, bitmap.metrics.width = 12, 13
        bitmap.metrics.BearingX, bitmap.metrics.BearingY, bitmap.metrics.Advance = 0, 12, 13
        bitmap.imageData = buffer.getvalue()
        bitmaps[name] = bitmap
    data.strikeData = [bitmaps]
    strike, size = Strike(), BitmapSizeTable()
    for axis in ("hori", "vert"):
        metrics = SbitLineMetrics()
        for field in (
            "ascender", "descender", "widthMax", "caretSlopeNumerator", "caretSlopeDenominator", "caretOffset",
            "minOriginSB", "minAdvanceSB", "maxBeforeBL", "minAfterBL", "pad1", "pad2",
        ):  # fmt: skip
            setattr(metrics, field, 0)
        setattr(size, axis, metrics)
    size.colorRef, size.ppemX, size.ppemY, size.bitDepth, size.flags = 0, 12, 12, 32, 1
    size.startGlyphIndex, size.endGlyphIndex = 1, len(order) - 1
    strike.bitmapSizeTable = size
    index = eblc_index_sub_table_1(b"", font)
    index.indexFormat, index.imageFormat, index.imageSize = 1, 17, 0
    index.names = sorted(drawn, key=order.index)
    index.firstGlyphIndex, index.lastGlyphIndex = order.index(index.names[0]), order.index(index.names[-1])
    strike.indexSubTables = [index]
    location.strikes = [strike]
    font["CBDT"], font["CBLC"] = data, location
    path.parent.mkdir(parents=True, exist_ok=True)
    font.save(path)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked packages of toy size."""
    folder = tmp_path_factory.mktemp("packages")
    share = folder / "usr/share"
    write_font(share / FONT)
    (share / NAMES).parent.mkdir(parents=True)
    (share / NAMES).write_text(emoji_test(), encoding="utf-8")
    write_keywords(share / CLDR)
    write_wordnet(share / WORDNET)
    return folder


def test_a_sequence_is_one_glyph_or_none(packages: Path) -> None:
    font = BitmapFont(packages / "usr/share" / FONT)
    assert font.glyph((0x1F34E,)) == "apple" and font.glyph((0x1F34E, 0xFE0F)) == "apple"
    assert font.glyph((0xE000, 0x1F3FD)) == "hand_tone" and font.glyph((0xE000,)) == "hand"
    assert font.glyph((0x23, 0xFE0F, 0x20E3)) == "hash_cap"
    # Two glyphs, a glyph without a picture, and a character that the font lacks.
    assert font.glyph((0xE000, 0x1F34E)) is None
    assert font.glyph((0x1F400,)) is None and font.glyph((0x1F3FD,)) is None and font.glyph((0x41,)) is None
    assert font.picture("hand").getpixel((3, 3)) == (255, 165, 0, 255)


def test_the_whole_dictionary_is_built(packages: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    output = tmp_path / "deep" / "emoji"
    figures = build_emoji(packages, output, lambda done, total: heard.append((done, total)))
    entries = {each.name: each for each in load_entries(output)}
    assert set(entries) == {
        "red apple", "three o'clock", "blue heart", "hand 0", "hand 0: medium skin tone", "keycap: #",
    }  # fmt: skip
    assert heard == [(done, 6) for done in range(1, 7)]
    assert figures == stats(output)
    assert figures["entries"] == figures["pictures"] == 6 and figures["pages"] == 6 * len(forms.FORMS)
    apple = entries["red apple"]
    assert (
        apple.keywords == ("apple", "fruit", "red") and apple.kind_of == "fruit" and apple.slug == "red-apple"
    )
    assert apple.definition.startswith("fruit with red") and apple.split == held_out("red apple")
    assert entries["keycap: #"].slug == "keycap" and entries["three o'clock"].split == "rest"
    rows = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert {row["page"] for row in rows} == {path.name for path in output.glob("*.html")}
    for row in rows:
        each = next(each for each in entries.values() if each.slug == row["slug"])
        name = row["page"].split(".")
        kind = name[1] if len(name) == 3 else "entry"
        assert row["split"] == each.split
        assert row["weight"] == pytest.approx(each.weight * forms.SHARES[kind], abs=1e-5)
    linked = {
        href for page in output.glob("*.html") for href in re.findall(r'href="([^"]+)"', page.read_text())
    }
    assert len(linked) >= 2
    assert all((output / href).is_file() for href in linked)
    assert entries["hand 0"].weight == pytest.approx(0.5**0.1)
    for each in entries.values():  # nothing that is held out is shown on another's page
        assert all(kin.split == "train" for kin in entries.values() if kin.slug in each.related)
    pixel = Pillow.open(output / "pictures/hand-0-medium-skin-tone.png").convert("RGB").getpixel((64, 64))
    assert pixel == (165, 42, 42)
    assert (output / "LICENSES.md").is_file() and not list(output.parent.glob(".tmp-*"))
    with pytest.raises(OutputError):
        build_emoji(packages, output)


def test_a_font_without_pictures_is_refused(tmp_path: Path, packages: Path) -> None:
    from fontTools.ttLib import TTFont

    with TTFont(packages / "usr/share" / FONT) as font:
        del font["CBDT"], font["CBLC"]
        font.save(tmp_path / "plain.ttf")
    (tmp_path / "no.ttf").write_bytes(b"no font at all")
    for name, said in (("plain.ttf", "no colour bitmaps"), ("no.ttf", "is not a font")):
        with pytest.raises(Cm3kitError, match=said) as caught:
            BitmapFont(tmp_path / name)
        assert caught.value.code == "bad_data"
