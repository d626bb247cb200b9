"""Several encodings of a picture, documents that show one of them at a time, and bundles of such documents."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from toys import toy_corpus

from cm3kit.data.bundle import INDEX, load_bundle, save_bundle
from cm3kit.data.corpus import Documents, load_documents
from cm3kit.data.views import ViewSettings, chosen, nearest, swapped, view
from cm3kit.models.backbone import BackboneConfig
from cm3kit.rng import generator
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.losses import of_views
from cm3kit_tokenizers.errors import ConfigError, DataError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig

torch.set_num_threads(1)
CONFIG = ImageTokenizerConfig(
    resolution=16, channels=(4, 4), codes=16, code_dim=4, latent_channels=4, norm_groups=2, attention=False
)
STILL = ViewSettings(count=2, shift=0, turn=0, scale=(1, 1), light=0, grounds=0)
TEXT = TextTokenizer.train(["a square"], 256)
PAGES = PageTokenizer(TEXT, Vocab(TEXT.size, 16))


class Grey(ImageTokenizer):
    """An image tokenizer whose codes are 8 × 8 grey levels."""

    def encode(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return (pixels_BCHW.float().mean(1)[:, ::2, ::2] / 16).long().clamp(0, 15).reshape(-1, 64)


@pytest.fixture(scope="module")
def image() -> Grey:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Grey(CONFIG)


def disc() -> Image.Image:
    picture = Image.new("RGBA", (16, 16))
    ImageDraw.Draw(picture).ellipse((3, 3, 12, 12), fill=(200, 30, 30, 255))
    return picture


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A page with a picture that has transparent parts, one with a picture that has none, and one without."""
    disc().save(tmp_path / "disc.png")
    Image.new("RGB", (16, 16), (40, 40, 40)).save(tmp_path / "full.png")
    for name in ("disc", "full"):
        (tmp_path / f"{name}.html").write_text(f'<p>a</p><img alt="{name}" src="{name}.png">')
    (tmp_path / "words.html").write_text("<p>a square</p>")
    return tmp_path


def pixels(picture: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    flat = (
        torch.frombuffer(bytearray(white.tobytes()), dtype=torch.uint8).view(1, 16, 16, 3).permute(0, 3, 1, 2)
    )
    alpha = torch.frombuffer(bytearray(picture.getchannel("A").tobytes()), dtype=torch.uint8).view(
        1, 1, 16, 16
    )
    return flat, alpha


def test_a_view_that_changes_nothing_is_the_picture() -> None:
    white_BCHW, alpha_B1HW = pixels(disc())
    seen_BCHW = view(white_BCHW, alpha_B1HW, STILL, generator(0))
    assert int((seen_BCHW.int() - white_BCHW.int()).abs().max()) <= 1


def test_a_view_moves_what_is_opaque_over_a_ground() -> None:
    white_BCHW, alpha_B1HW = pixels(disc())
    moved = ViewSettings(count=2, shift=0.2, turn=30, scale=(0.8, 0.8), light=0, grounds=1)
    seen_BCHW = view(white_BCHW, alpha_B1HW, moved, generator(5))
    corner, ground = seen_BCHW[0, :, 0, 0], white_BCHW[0, :, 0, 0]
    assert bool((corner != ground).any()) and int(corner.min()) >= 139  # a pale ground
    red = (seen_BCHW[0, 0].int() - seen_BCHW[0, 1].int() > 90).sum()
    was = (white_BCHW[0, 0].int() - white_BCHW[0, 1].int() > 90).sum()
    assert 0.5 < float(red / was) < 0.8  # 0.8² of the area
    assert torch.equal(seen_BCHW, view(white_BCHW, alpha_B1HW, moved, generator(5)))
    assert not torch.equal(seen_BCHW, view(white_BCHW, alpha_B1HW, moved, generator(6)))


def test_the_plain_encoding_comes_as_often_as_is_set() -> None:
    rng = generator(1)
    drawn = [chosen([4, 1], ViewSettings(count=4, plain=0.4), rng) for _ in range(4000)]
    share = [sum(which == (number, 0) for which, _ in drawn) / 4000 for number in range(4)]
    assert share == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.03)
    assert {only for _, only in drawn} == {(0, 0)}


def test_codes_are_replaced_in_what_is_not_plain() -> None:
    """The plain encoding as it is as often as is set, and any one, the plain one too, with up to the share replaced."""
    rng = generator(1)
    drawn = [chosen([2, 1], ViewSettings(count=2, plain=0.4, swap=0.3), rng) for _ in range(4000)]
    for place, of in ((0, 2), (1, 1)):
        plain = sum(each[place] == (0, 0) for each in drawn) / 4000
        assert plain == pytest.approx(0.4, abs=0.03)
        changed = [each[place] for each in drawn if each[place] != (0, 0)]
        shares = [share for _, share in changed]
        assert 0 < min(shares) < 0.01 and 0.29 < max(shares) < 0.3
        assert sum(which == 0 for which, _ in changed) / len(changed) == pytest.approx(1 / of, abs=0.03)


def test_a_code_is_replaced_by_one_of_its_nearest() -> None:
    codebook_KD = torch.tensor([[0.0], [1.0], [2.5], [10.0], [10.1]])
    near_KN = nearest(codebook_KD, 2)
    assert [set(each) for each in near_KN.tolist()] == [{1, 2}, {0, 2}, {0, 1}, {4, 2}, {3, 2}]
    assert nearest(codebook_KD).shape == (5, 4)  # of fewer codes all others
    codes_L = torch.arange(5).repeat(2000)
    made_L = swapped(codes_L, 0.3, near_KN, generator(3))
    assert float((made_L != codes_L).float().mean()) == pytest.approx(0.3, abs=0.02)
    for code in range(5):
        others = made_L[(codes_L == code) & (made_L != codes_L)].tolist()
        assert set(others) == set(near_KN[code].tolist())
    assert torch.equal(swapped(codes_L, 0.0, near_KN, generator(3)), codes_L)


def test_documents_show_one_encoding_at_a_time(corpus: Path, image: Grey, tmp_path: Path) -> None:
    plain = load_documents(corpus, PAGES, image, tmp_path / "cache")
    many = load_documents(
        corpus, PAGES, image, tmp_path / "cache", views=ViewSettings(count=6, turn=60, scale=(0.5, 0.7))
    )
    assert many.encodings is not None and many.encodings.counts_P.tolist() == [6, 1]  # what is opaque has one
    assert many.mean_length == pytest.approx(plain.mean_length)
    drawn = list(many.draw(generator(0), 300))
    assert drawn == list(many.draw(generator(0), 300))
    lengths = {len(each) for each in plain.ids}
    assert {len(each) for each in drawn} == lengths
    of_disc = {tuple(each) for each in drawn if len(each) == len(plain.ids[0])}
    assert tuple(plain.ids[0]) in of_disc and len(of_disc) > 4
    assert many.fingerprint() != plain.fingerprint()


def test_documents_show_replaced_codes(corpus: Path, image: Grey, tmp_path: Path) -> None:
    """Of a single encoding, opaque pictures too; the same again from a bundle; `scored` knows them."""
    plain = load_documents(corpus, PAGES, image, tmp_path / "cache")
    views = ViewSettings(plain=0.5, swap=0.4)
    many = load_documents(corpus, PAGES, image, tmp_path / "cache", views=views)
    drawn = [many.seen(number % 2, generator(number)) for number in range(400)]
    for number in range(2):
        seen = drawn[number::2]
        assert {len(each) for each in seen} == {len(plain.ids[number])}
        same = [each == plain.ids[number] for each in seen]
        assert sum(same) / len(same) == pytest.approx(0.5, abs=0.1)
        assert [many.is_plain(number, each) for each in seen] == same
        changed = [sum(a != b for a, b in zip(each, plain.ids[number], strict=True)) for each in seen]
        assert 12 < max(changed) < 40  # of 64
        others = {id for each in seen for id in each} - set(plain.ids[number])
        assert others and all(id in PAGES.vocab.image for id in others)
    save_bundle(many, [[7, 8, 9]], PAGES, image, tmp_path / "bundle")
    again, _ = load_bundle(tmp_path / "bundle", PAGES, image)
    assert drawn == [again.seen(number % 2, generator(number)) for number in range(400)]


def test_encodings_are_kept(
    corpus: Path, image: Grey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = ViewSettings(count=3)
    first = load_documents(corpus, PAGES, image, tmp_path / "cache", views=views)
    monkeypatch.setattr(Grey, "encode", lambda *_: pytest.fail("encoded again"))
    second = load_documents(corpus, PAGES, image, tmp_path / "cache", views=views)
    assert first.encodings is not None and second.encodings is not None
    assert torch.equal(first.encodings.codes_NL, second.encodings.codes_NL)


def bundled(corpus: Path, image: Grey, tmp_path: Path) -> tuple[Documents, Path]:
    documents = load_documents(
        corpus, PAGES, image, tmp_path / "cache", views=ViewSettings(count=3, plain=0.2)
    )
    save_bundle(documents, [[7, 8, 9]], PAGES, image, tmp_path / "bundle")
    return documents, tmp_path / "bundle"


def test_a_bundle_draws_what_its_documents_draw(corpus: Path, image: Grey, tmp_path: Path) -> None:
    documents, folder = bundled(corpus, image, tmp_path)
    again, held = load_bundle(folder, PAGES, image)
    assert held == [[7, 8, 9]] and again.fingerprint() == documents.fingerprint()
    assert list(again.ids) == list(documents.ids) and again.ids[-1] == documents.ids[-1]
    assert list(again.draw(generator(3), 50)) == list(documents.draw(generator(3), 50))
    assert load_file(folder / "documents.safetensors")["ids"].dtype == torch.uint16
    with pytest.raises(IndexError):
        again.ids[len(again.ids)]


def test_a_bundle_of_other_tokenizers_or_with_a_part_missing_is_refused(
    corpus: Path, image: Grey, tmp_path: Path
) -> None:
    _, folder = bundled(corpus, image, tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        other = Grey(CONFIG)
    with pytest.raises(ConfigError, match="another image tokenizer"):
        load_bundle(folder, PAGES, other)
    (folder / "codes-000.safetensors").unlink()
    with pytest.raises(DataError, match="not a complete bundle"):
        load_bundle(folder, PAGES, image)
    (folder / INDEX).write_text("{")
    with pytest.raises(DataError, match="not a complete bundle"):
        load_bundle(folder, PAGES, image)


def test_documents_without_encodings_are_no_bundle(corpus: Path, image: Grey, tmp_path: Path) -> None:
    plain = load_documents(corpus, PAGES, image, tmp_path / "cache")
    with pytest.raises(ConfigError, match="with views"):
        save_bundle(plain, [], PAGES, image, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_picture_with_transparency_is_encoded_over_white_first(image: Grey, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    disc().save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    (tmp_path / "a.html").write_text('<img alt="a" src="a.png">')
    many = load_documents(tmp_path, PAGES, image, tmp_path / "cache", views=STILL)
    assert many.encodings is not None
    first, second = many.encodings.codes_NL
    assert int(first[0]) == PAGES.vocab.image.start + 15  # white in the corner
    assert int((first - second).abs().max()) <= 1


def test_codes_of_augmented_pictures_are_read_and_not_learnt(tmp_path: Path) -> None:
    toy_corpus(tmp_path, ("red", "green", "blue"))
    for path in tmp_path.rglob("*.png"):  # without transparency a picture has no views
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
        picture.putpixel((0, 0), (0, 0, 0, 0))
        picture.save(path)

    def task(plain: float, **how: Any) -> DecoderTask:
        recipe = DecoderRecipe(
            data=tmp_path, text=tmp_path, image=tmp_path / "image", window=96, previews=(),
            objective={"name": "picture-starts", **how}, views=ViewSettings(count=3, plain=plain, scored=False),
            backbone=BackboneConfig(hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=16),
        )  # fmt: skip
        return DecoderTask(recipe, tmp_path / "cache")

    def learnt(made: DecoderTask) -> torch.Tensor:
        batch = made.batch(generator(0), 8)
        return batch.targets_BT[batch.weights_BT > 0]

    codes = task(0.0).vocab.image
    for plain, some in ((0.0, False), (1.0, True)):
        found_N = learnt(task(plain, share=0.5, texts=0.5))
        assert len(found_N) and bool(((found_N >= codes.start) & (found_N < codes.stop)).any()) == some
    with pytest.raises(ConfigError, match=r"raise views\.plain"):
        task(0.0, share=1.0, texts=0.0).batch(generator(0), 8)


def test_views_that_are_not_used_are_said(corpus: Path, image: Grey, tmp_path: Path) -> None:
    bundled(corpus, image, tmp_path)
    own = load_bundle(tmp_path / "bundle", PAGES, image)[0].views
    folder = load_documents(corpus, PAGES, image, tmp_path / "cache").views
    assert (
        of_views(ViewSettings(), None)
        == of_views(ViewSettings(), own)
        == of_views(ViewSettings(), folder)
        == []
    )
    assert of_views(own, own) == of_views(own.model_copy(update={"scored": False}), own) == []
    assert "token shards hold one encoding" in of_views(ViewSettings(count=9), None)[0]
    assert "a bundle has its own (3 encodings)" in of_views(ViewSettings(swap=0.2), own)[0]
    assert "nothing is augmented" in of_views(ViewSettings(turn=40), folder)[0]
