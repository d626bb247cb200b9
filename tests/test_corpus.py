"""A folder of pages as documents."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow

from cm3kit.data.corpus import Documents, Listed, listing, load_documents, read_nodes
from cm3kit.data.pictures import load_pictures
from cm3kit.rng import generator
from cm3kit_tokenizers.document import Image, Markup, Picture, Text
from cm3kit_tokenizers.errors import DataError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig

torch.set_num_threads(1)
CONFIG = ImageTokenizerConfig(
    resolution=8, channels=(4, 4), codes=16, code_dim=4, latent_channels=4, norm_groups=2, attention=False
)


class Grey(ImageTokenizer):
    """An image tokenizer that shows every pixel: its codes are 4 × 4 grey levels, and it counts pictures."""

    seen = 0

    def encode(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        self.seen += len(pixels_BCHW)
        return (pixels_BCHW.float().mean(1)[:, ::2, ::2] / 16).long().clamp(0, 15).reshape(-1, 16)


@pytest.fixture(scope="module")
def image() -> Grey:
    with torch.random.fork_rng(devices=[]):
        return Grey(CONFIG)


TEXT = TextTokenizer.train(["a square"], 256)
PAGES = PageTokenizer(TEXT, Vocab(TEXT.size, 16))


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (8, 8), (grey,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_without_a_manifest_every_page_below_the_folder_is_listed(tmp_path: Path) -> None:
    for index in range(45):
        write(tmp_path, f"{'sub/' if index % 2 else ''}{index:02}.html", "<p>x</p>")
    write(tmp_path, "note.txt", "x")
    found = listing(tmp_path)
    assert sorted(each.path.name for each in found) == [f"{index:02}.html" for index in range(45)]
    assert [index for index, each in enumerate(found) if each.split == "rest"] == [10, 30]
    assert {each.split for each in found} == {"train", "rest"} and {each.weight for each in found} == {1.0}
    assert listing(tmp_path) == found == sorted(found, key=lambda each: each.path)


def test_a_manifest_says_what_is_listed(tmp_path: Path) -> None:
    write(tmp_path, "a.html", "<p>a</p>")
    write(tmp_path, "other.html", "<p>b</p>")
    line = {"page": "a.html", "slug": "a", "split": "tone", "weight": 2}
    write(tmp_path, "manifest.jsonl", json.dumps(line) + "\n\n")
    assert listing(tmp_path) == [Listed(tmp_path / "a.html", "tone", 2.0)]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"page": "a.html"}', '{"page": 3, "split": "train", "weight": 1}']
)
def test_a_broken_manifest_names_the_line(tmp_path: Path, line: str) -> None:
    write(tmp_path, "manifest.jsonl", '{"page": "a.html", "split": "train", "weight": 1}\n' + line)
    with pytest.raises(DataError, match="line 2 of"):
        listing(tmp_path)


def test_a_folder_without_pages_is_refused(tmp_path: Path, image: Grey) -> None:
    with pytest.raises(DataError, match=r"holds no \.html pages"):
        listing(tmp_path)
    with pytest.raises(DataError, match="holds no pictures"):
        load_pictures(tmp_path, image)
    write(tmp_path, "a.html", "<p>a</p>")
    with pytest.raises(DataError, match="no pages of the split 'rest'"):
        load_documents(tmp_path, PAGES, image, tmp_path / "cache", "rest")


@pytest.mark.parametrize("content", [None, b""])
def test_a_page_that_cannot_be_read_is_named(tmp_path: Path, image: Grey, content: bytes | None) -> None:
    write(tmp_path, "manifest.jsonl", '{"page": "a.html", "split": "train", "weight": 1}')
    if content is not None:
        write(tmp_path, "a.html", content)
    with pytest.raises(DataError, match=r"a\.html") as caught:
        load_documents(tmp_path, PAGES, image, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_pictures_outside_the_folder_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, "secret.png", png(0))
    write(tmp_path, "in/pic/a.png", png(0))
    sources = [
        "pic/a.png",
        "../secret.png",
        "/etc/hostname",
        "http://x.org/a.png",
        "file:pic/a.png",
        "none.png",
    ]
    write(tmp_path, "in/page.html", "".join(f'<img alt="{i}" src="{src}">' for i, src in enumerate(sources)))
    nodes = read_nodes(tmp_path / "in/page.html")
    assert [node for node in nodes if isinstance(node, Picture)] == [Picture("pic/a.png")]
    assert [node.content for node in nodes if isinstance(node, Text)] == list("012345")


def corpus(folder: Path) -> dict[str, int]:
    """Pages in two folders whose pictures share names, and the grey that each page should show."""
    greys = {"a": 40, "b c/a": 120, "b c/d": 40, "e": 200}
    write(folder, "p.png", png(40))
    write(folder, "b c/p.png", png(120))
    write(folder, "b c/q%.png", png(40))
    write(folder, "a.html", '<p>one <img src="p.png"></p>')
    write(folder, "b c/a.html", '<p>two <img src="./p.png?x=1"></p>')
    write(folder, "b c/d.html", '<p>three <img src=" q%25.png"></p>')
    inline = base64.b64encode(png(200) + bytes([255] * 9)).decode()
    write(folder, "e.html", f'<p><img src="data:image/png;base64,{inline}"></p>')
    return greys


def test_documents_hold_the_codes_of_their_own_pictures_and_load_equal_again(
    tmp_path: Path, image: Grey
) -> None:
    folder, cache = tmp_path / "in", tmp_path / "cache"
    greys = corpus(folder)
    assert "////" in (folder / "e.html").read_text()
    image.seen = 0
    found = load_documents(folder, PAGES, image, cache)
    assert image.seen == 4
    files = sorted(cache.iterdir())
    assert len(files) == 1
    for page, ids in zip(listing(folder), found.ids, strict=True):
        name = page.path.relative_to(folder).with_suffix("").as_posix()
        nodes = PAGES.decode(ids)
        assert [node for node in nodes if isinstance(node, Image)] == [Image((greys[name] // 16,) * 16)]
        texts = {"a": "one ", "b c/a": "two ", "b c/d": "three ", "e": ""}
        assert "".join(node.content for node in nodes if isinstance(node, Text)) == texts[name]
        assert nodes[0] == Markup("<p>") and nodes[-1] == Markup("</p>")
    before = files[0].stat().st_mtime_ns
    again = load_documents(folder, PAGES, image, cache)
    assert again.ids == found.ids and torch.equal(again.weights_B, found.weights_B)
    assert sorted(cache.iterdir()) == files and files[0].stat().st_mtime_ns == before


def test_a_changed_page_is_read_again(tmp_path: Path, image: Grey) -> None:
    write(tmp_path, "a.html", "<p>one</p>")
    first = load_documents(tmp_path, PAGES, image, tmp_path / "cache").ids
    write(tmp_path, "a.html", "<p>three</p>")
    assert load_documents(tmp_path, PAGES, image, tmp_path / "cache").ids != first


def test_documents_are_drawn_by_weight() -> None:
    documents = Documents(([1], [2], [3]), torch.tensor([1.0, 0.0, 3.0]))
    drawn = [ids[0] for ids in documents.draw(generator(0), 4000)]
    assert drawn.count(2) == 0
    assert abs(drawn.count(3) / 4000 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 4000)
    assert drawn == [ids[0] for ids in documents.draw(generator(0), 4000)]


def test_pictures_of_any_folder_are_loaded_over_white_with_some_held_out(tmp_path: Path, image: Grey) -> None:
    for index in range(22):
        write(tmp_path, f"{index:02}.png", png(index * 10))
    Pillow.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    found = load_pictures(tmp_path, image)
    assert found.names == (*(f"{index:02}" for index in range(22)), "clear")
    assert found.pixels_BCHW[:, 0, 0, 0].tolist() == [*range(0, 220, 10), 255]
    assert found.weights_B.tolist() == [0.0 if index == 10 else 1.0 for index in range(23)]
    assert found.held_out(None)[:, 0, 0, 0].tolist() == found.held_out(5)[:, 0, 0, 0].tolist() == [100]
    assert 100 not in found.draw(generator(0), 300)[:, 0, 0, 0].tolist()


def test_a_broken_picture_is_named(tmp_path: Path, image: Grey) -> None:
    write(tmp_path, "a.png", png(3)[:40])
    with pytest.raises(DataError, match=r"a\.png"):
        load_pictures(tmp_path, image)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\n\n", "lists no pages"),
        (b'{"page": "\xff"}\n', "line 1 of"),
        (b'{"page": "a.html"}\n', "split and weight"),
    ],
)
def test_a_manifest_that_lists_nothing_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=says):
        listing(tmp_path)
