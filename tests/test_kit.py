"""A model as a folder, generation, and pages filled end to end, on a toy model with random weights."""

from __future__ import annotations

import io
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from toys import WORDS, toy_decoder, toy_image, toy_text, zebras

import cm3kit
from cm3kit.decoders.settings import DecodeConfig
from cm3kit.fill.defaults import Defaults
from cm3kit.fill.filling import missing
from cm3kit.fill.finding import ALIASES, available, find
from cm3kit.fill.folder import assemble
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.fill.windows import trim, windows
from cm3kit.renamed import RenamedWarning
from cm3kit_tokenizers import ConfigError, Gap, ModelError, Page, PictureError

SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    parts = tmp_path_factory.mktemp("parts")
    toy_image(parts / "image", resolution=SIDE)
    toy_decoder(parts / "decoder", toy_text(parts / "text"))
    small = DecodeConfig(batch_size=3, guidance=1.5)
    defaults = Defaults(window=160, image=small, text=DecodeConfig(batch_size=3))
    return assemble(
        parts / "toy", parts / "text", parts / "image", parts / "decoder", defaults, "# Toy\nA card.\n"
    )


@pytest.fixture(scope="module")
def kit(folder: Path) -> Kit:
    return cm3kit.load(folder, device="cpu")


@pytest.fixture
def page_folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "pear.png")
    return tmp_path


def test_the_folder_names_its_parts_and_carries_its_card(folder: Path, kit: Kit) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert {"text", "image", "decoder"} <= set(index)
    info = kit.info()
    assert info["name"] == "toy" and "A card." in info["card"]
    assert all(len(value) == 64 for value in info["sha256"].values())


def test_a_sample_is_the_same_whatever_is_made_beside_it(kit: Kit) -> None:
    many = kit.generate("red apple", n=5, seed=3)
    alone = kit.generate("red apple", n=1, seed=3)
    assert many[0].image is not None and alone[0].image is not None
    assert many[0].image.tobytes() == alone[0].image.tobytes() and many[0].logprob == alone[0].logprob
    again = kit.generate("red apple", n=5, seed=3)
    assert [each.image.tobytes() for each in many if each.image] == [
        e.image.tobytes() for e in again if e.image
    ]
    other = kit.generate("red apple", n=5, seed=4)
    assert [each.logprob for each in other] != [each.logprob for each in many]


def test_results_say_what_is_remarkable_of_them(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm3kit.fill.remarks.unknown_words", zebras)
    unseen = "toy has never seen the words 'zebra': what it makes of them is a guess"
    equal = "all 2 results are equal; temperature and top-p make them differ"
    cold = GenerateOptions(temperature=0.0, max_tokens=4)
    for task in ("image", "text", "document"):
        made = kit.generate("a zebra", task=task, n=2, options=cold)  # type: ignore[arg-type]
        assert [each.warnings for each in made] == [(unseen, equal)] * 2
    assert kit.generate("a zebra", task="text", options=cold)[0].warnings == (unseen,)
    assert not any(each.warnings for each in kit.generate("an apple", n=2))
    filled = kit.infill(Page.parse(b"<p>a zebra <mask></p>"), variants=2, options=cold)
    assert [each.warnings for each in filled] == [(unseen, equal)] * 2


@pytest.mark.parametrize("size", [1, 2, 5])
def test_batch_size_does_not_change_what_is_drawn(kit: Kit, size: int) -> None:
    options = GenerateOptions(batch_size=size)
    made = kit.generate("green pear", n=5, seed=9, options=options)
    usual = kit.generate("green pear", n=5, seed=9)
    assert [e.image.tobytes() for e in made if e.image] == [e.image.tobytes() for e in usual if e.image]


@pytest.mark.parametrize("task", ["text", "document"])
def test_words_and_pages_come_back_well_formed(kit: Kit, task: str) -> None:
    for result in kit.generate("red apple", task=task, n=3, seed=1, options=GenerateOptions(max_tokens=40)):  # type: ignore[arg-type]
        if task == "text":
            assert result.text is not None and "<mask" not in result.text
        else:
            assert result.html is not None and "<title>red apple</title>" in result.html
            nodes = Page.parse(result.html.encode()).nodes()
            assert len(nodes) >= 3


def test_a_caption_describes_a_picture_file(kit: Kit, page_folder: Path) -> None:
    result = kit.generate(page_folder / "pear.png", task="caption", seed=2)[0]
    assert result.kind == "text" and result.text
    from_bytes = kit.generate((page_folder / "pear.png").read_bytes(), task="caption", seed=2)[0]
    assert from_bytes.text == result.text


PAGE = (
    b"<!DOCTYPE html>\r\n<TITLE><mask></TITLE><style>p{color:red}</style>\n<!-- a <b>comment</b> -->\n"
    b"<p class=x>a <mask> b &amp; c &nbsp;\xff<br><IMG alt='<mask>' src=pear.png width=3>"
    b'<img src="<mask>" alt="red apple" onclick="x()"></p><script>if (a < b) {}</script>tail'
)


def test_infill_replaces_the_gaps_and_no_other_byte(kit: Kit, page_folder: Path) -> None:
    page = Page.parse(PAGE, base=page_folder)
    for filled in kit.infill(page, variants=3, seed=5, options=GenerateOptions(max_tokens=12)):
        pieces, rest = PAGE.split(b"<mask>"), filled.html
        assert rest.startswith(pieces[0]) and rest.endswith(pieces[-1])
        at = 0
        for piece in pieces:
            found = rest.index(piece, at)
            at = found + len(piece)
        assert [gap.kind for gap in filled.gaps] == ["content", "content", "attribute", "image"]
        assert b'src="data:image/png;base64,' in filled.html
        again = Page.parse(filled.html, base=page_folder)
        assert not again.gaps


def test_variants_differ_and_repeat(kit: Kit, page_folder: Path) -> None:
    page = Page.parse(PAGE, base=page_folder)
    first, second = kit.infill(page, variants=2, seed=5), kit.infill(page, variants=2, seed=5)
    assert [each.html for each in first] == [each.html for each in second]
    assert first[0].html != first[1].html
    assert kit.infill(page, variants=1, seed=5)[0].html == first[0].html


def test_a_region_changes_only_its_box(kit: Kit, page_folder: Path) -> None:
    source = b'<p>x<img alt="a pear" src="pear.png">y</p>'
    page = Page.parse(source, base=page_folder).region("pear.png", (10, 4, 12, 9))
    html = kit.infill(page, seed=1)[0].html
    start = html.index(b"base64,") + 7
    import base64

    drawn = np.array(Image.open(io.BytesIO(base64.b64decode(html[start : html.index(b'"', start)]))))
    before = np.array(Image.open(page_folder / "pear.png"))
    inside = np.zeros(before.shape[:2], dtype=bool)
    inside[4:13, 10:22] = True
    assert drawn.shape == before.shape
    assert (drawn[~inside] == before[~inside]).all() and (drawn[inside] != before[inside]).any()
    assert html.startswith(b'<p>x<img alt="a pear" src="') and html.endswith(b'">y</p>')


@given(st.integers(1, 90), st.integers(1, 90), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_missing_codes_are_those_that_the_box_touches(width: int, height: int, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    holes = np.array(missing((width, height), (x, y, w, h), (8, 8))).reshape(8, 8)
    side, scale = max(width, height), 8  # brute force on a raster of side * 8 cells
    raster = np.zeros((side * scale, side * scale), dtype=bool)
    left, top = (side - width) // 2 + x, (side - height) // 2 + y
    raster[top * scale : (top + h) * scale, left * scale : (left + w) * scale] = True
    cells = raster.reshape(8, side, 8, side).any(axis=(1, 3))
    assert (holes == cells).all()


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(60, 200))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_windows_hold_every_gap_once_and_fit(seed: int, count: int, window: int) -> None:
    rng = random.Random(seed)
    ids: list[int | Gap] = [rng.randrange(100) for _ in range(rng.randrange(count, 900))]
    places = sorted(rng.sample(range(len(ids)), count))
    for number, place in enumerate(places):
        ids[place] = Gap(number, "content")
    costs = {place: rng.randrange(1, 12) + 2 for place in places}
    found = windows(ids, costs, window)
    held = [place for each in found for place in places if each.start <= place < each.stop]
    assert sorted(set(held)) == places
    for each in (trim(ids, one, range(90, 100)) for one in found):
        inside = [place for place in places if each.start <= place < each.stop]
        assert inside and 0 <= each.start < each.stop <= len(ids)
    first = found[0]
    mine = [place for place in places if first.start <= place < first.stop]
    assert first.stop - first.start + 2 <= window and mine[0] == places[0]


@pytest.mark.parametrize("decoder", ["cm3", "diffusion"])
def test_more_gaps_than_sentinels_are_filled_in_several_windows(kit: Kit, decoder: str) -> None:
    source = b"".join(b"<p>a <mask></p>" for _ in range(kit.vocab.sentinels + 3))
    wide = Kit(replace(kit.parts, defaults=Defaults(window=512, decoders=("cm3", "diffusion"))), "cpu")
    options = GenerateOptions(max_tokens=1, decoder=decoder)  # type: ignore[arg-type]
    filled = wide.infill(Page.parse(source), seed=0, options=options)[0]
    assert len(filled.gaps) == kit.vocab.sentinels + 3
    assert filled.html.count(b"<p>a ") == kit.vocab.sentinels + 3


@pytest.mark.parametrize("seed", range(40))
def test_a_window_with_its_answers_fits_and_holds_the_gaps_of_its_group_alone(seed: int) -> None:
    rng = random.Random(seed)
    window, most = rng.randrange(24, 80), rng.randrange(1, 5)
    ids: list[int | Gap] = [50] * rng.randrange(20, 200)
    for number, place in enumerate(sorted(rng.sample(range(len(ids)), rng.randrange(1, 12)))):
        ids[place] = Gap(number, "content")
    costs = {place: rng.randrange(1, 12) for place, each in enumerate(ids) if isinstance(each, Gap)}
    held = []
    for each in windows(ids, costs, window, most):
        inside = [place for place in costs if each.start <= place < each.stop]
        mine = [place for place in inside if place not in held]
        held += mine
        assert 0 < len(mine) <= most and inside[-len(mine) :] == mine
        assert each.stop - each.start + 2 + sum(costs[place] for place in mine) <= window
    assert held == sorted(costs)


def test_a_long_page_is_filled_through_windows(kit: Kit) -> None:
    middle = b"<p>" + WORDS.encode() + b"</p>\n"
    source = middle * 4 + b"<p>the <mask> book</p>" + middle * 6 + b"<h2><mask></h2>" + middle * 3
    filled = kit.infill(Page.parse(source), seed=0, options=GenerateOptions(max_tokens=8))[0]
    assert len(filled.gaps) == 2 and all(len(gap.text) < 200 for gap in filled.gaps)
    assert filled.html.startswith(middle * 4 + b"<p>the ") and filled.html.endswith(middle * 3)


def test_parallel_gaps_do_not_see_one_another(kit: Kit) -> None:
    page = Page.parse(b"<p>a <mask></p><p>b <mask></p>")
    options = GenerateOptions(max_tokens=6, parallel=True)
    assert len(kit.infill(page, seed=1, options=options)[0].gaps) == 2


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (GenerateOptions(temperature=-1.0), "temperature"),
        (GenerateOptions(top_p=2.0), "top_p"),
        (GenerateOptions(guidance=-3.0), "guidance"),
        (GenerateOptions(batch_size=0), "batch_size"),
    ],
)
def test_options_out_of_range_are_named(kit: Kit, options: GenerateOptions, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        kit.generate("red apple", options=options)


def test_prompts_that_do_not_fit_are_refused(kit: Kit) -> None:
    with pytest.raises(ConfigError, match="window"):
        kit.generate("apple pear " * 200)
    with pytest.raises(ConfigError, match="empty"):
        kit.generate("  \n ")


def test_an_unreadable_picture_is_refused(kit: Kit) -> None:
    with pytest.raises(PictureError):
        kit.generate(b"no picture", task="caption")


def test_pictures_outside_the_folder_are_not_read(kit: Kit, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    page = Page.parse(b'<p>a <mask> b<img alt="x" src="../secret.png"></p>', base=inner)
    assert kit.infill(page, seed=1)[0].html.endswith(b'b<img alt="x" src="../secret.png"></p>')
    with pytest.raises(PictureError):
        kit.infill(Page.parse(b'<img src="../secret.png">', base=inner).region("secret.png", (0, 0, 4, 4)))


def test_unknown_models_get_the_nearest_name() -> None:
    known = available()
    near = f"{known[0]}s" if known else "emojis"
    with pytest.raises(ModelError, match="no model") as caught:
        cm3kit.load(near)
    assert not known or repr(known[0]) in str(caught.value)


@pytest.mark.skipif("pictures" not in available(), reason="no checkpoints/pictures")
def test_a_model_is_found_by_the_name_that_it_had_before() -> None:
    for old, new in ALIASES.items():
        with pytest.warns(RenamedWarning, match=f"the model {old} is called {new} now"):
            assert find(old) == find(new) != Path(old)
    assert ALIASES
    assert not set(ALIASES) & set(available())


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    (target / "manifest.json").unlink()
    return target


def test_a_flipped_bit_is_noticed(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "flipped"
    shutil.copytree(folder, target)
    weights = target / "decoder/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 4
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"decoder/model\.safetensors"):
        cm3kit.load(target)


@pytest.mark.parametrize("part", ["decoder/model.safetensors", "image/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_tensors_that_do_not_fit_are_named(copied: Path, part: str, change: str) -> None:
    tensors = load_file(copied / part)
    name = sorted(name for name in tensors if tensors[name].ndim == 2)[-1]
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors["intruder.weight"] = torch.zeros(2)
        name = "intruder.weight"
    else:
        tensors[name] = torch.zeros(3, 5)
    save_file(tensors, copied / part, {"format": "pt"})
    with pytest.raises(ModelError, match=name.replace(".", r"\.")) as caught:
        cm3kit.load(copied)
    assert caught.value.code == "bad_checkpoint" and "\n" not in str(caught.value)


def test_parts_of_different_models_are_refused(copied: Path) -> None:
    saved = json.loads((copied / "vocab.json").read_text())
    (copied / "vocab.json").write_text(json.dumps({**saved, "text_size": 5}))
    with pytest.raises(ModelError, match=r"vocab\.json"):
        cm3kit.load(copied)


def test_the_summary_of_a_card_is_its_first_paragraph() -> None:
    from cm3kit.fill.finding import summary_of

    front = "---\nlicense: mit\ntags: [a]\n---\n# name: a model\n\nFour parts,\nand more.\n\nElse.\n"
    assert summary_of(front) == "Four parts, and more." == summary_of(front.split("---\n")[-1])
    assert summary_of("") == "" == summary_of("# name\n")
