"""Trajectories as frames, animations, players, and the command that makes them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from canvases import FlatSpan, flat_canvas
from PIL import Image, ImageChops, ImageColor, ImageStat

from cm3kit.evaluation.arness import stats
from cm3kit.fill.folder import fingerprints
from cm3kit.provenance.trajectories import Record, encode_trajectory
from cm3kit.types import Commit, Trajectory
from cm3kit.viewing import animation, playback, showing
from cm3kit.viewing.player import player
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig, to_picture

VOCAB = Vocab(text_size=256, image_size=16)
TEXT, CODE, MASK = VOCAB.text.start, VOCAB.image.start, VOCAB.mask
NASTY = "</script><script>alert(1)</script> @DATA@"
CODES = (3, 1, 4, 1)


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    """Pictures of 8 × 8 pixels out of 2 × 2 codes."""
    config = ImageTokenizerConfig(
        resolution=8, channels=(8, 8, 8), codes=16, code_dim=4, latent_channels=4, norm_groups=4, attention=False
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageTokenizer(config).eval()


def text(words: bytes) -> tuple[int, ...]:
    return tuple(TEXT + each for each in words)


def commit(step: int, ids: dict[int, int], kind: Any = "write") -> Commit:
    size = len(ids)
    return Commit(step, tuple(ids), tuple(ids.values()), (-0.5,) * size, (0.6,) * size, kind)


def a_record(codes: tuple[int, ...] = CODES, prompt: str = NASTY) -> Record:
    """A caption of three slots before a picture: `<p>` c c c `</p>` code × 4."""
    caption = text("aä".encode())
    ids = (VOCAB.markup_id("<p>"), MASK, MASK, MASK, MASK, VOCAB.markup_id("</p>"), *(MASK,) * 4)
    stretches = (FlatSpan("content", 1, 5, padded=True), FlatSpan("image", 6, 10, gap=1))
    commits = (
        commit(0, {1: caption[0], 6: CODE + codes[0]}),
        commit(1, {3: caption[2], 4: VOCAB.eoss}),
        commit(2, {2: caption[1], 7: CODE + codes[1]}),
        commit(3, {7: CODE + codes[1]}, "remask"),
        commit(3, {8: CODE + codes[2]}),
        commit(4, {9: CODE + codes[3], 7: CODE + codes[1]}),
        commit(5, {1: TEXT + 98}, "edit"),
    )
    pieces = {TEXT + each: bytes([each]) for each in range(256)}
    how = {"prompt": prompt, "seed": 5, "nested": {"not": "shown"}}
    return Record(Trajectory(flat_canvas(ids, stretches), commits), VOCAB, pieces, (2, 2), "tiny", {}, how)


def films_of(record: Record, tokenizer: ImageTokenizer) -> tuple[list[playback.Frame], list[playback.Filmed]]:
    shown = playback.frames(record)
    places = playback.picture_places(record, shown[-1].ids)
    return shown, [playback.film(tokenizer, record, shown, each) for each in places]


def test_frames_follow_the_steps() -> None:
    shown = playback.frames(a_record())
    assert [each.step for each in shown] == [None, 0, 1, 2, 3, 4, 5]
    assert shown[4].fresh == {7, 8} and shown[4].ids[7] is None and shown[4].ids[8] == CODE + 4
    assert not shown[0].fresh and None not in shown[-1].ids


def test_words_show_open_slots_and_characters_of_several_ids() -> None:
    record = a_record()
    read = [playback.labels(record, each.ids)[1:5] for each in playback.frames(record)]
    assert read[0] == [None] * 4
    # The second byte of ä alone is no character; with the first one it is.
    assert read[2] == ["a", None, "\ufffd", "|"] and read[3] == ["a", "", "ä", "|"]
    assert read[6][0] == "b"
    signs = playback.labels(record, (VOCAB.sentinel(2), VOCAB.pad, CODE, VOCAB.markup_id("<img"), MASK))
    assert signs == ["<mask:2>", "", "", "<img", "<mask>"]


def test_thinned_frames_keep_the_ends_and_every_commit() -> None:
    shown = playback.frames(a_record())
    for most in range(2, 9):
        fewer = playback.thinned(shown, most)
        assert len(fewer) == min(most, len(shown)) and fewer[-1].ids == shown[-1].ids
        assert fewer[0] == shown[0]
        assert [c for each in fewer for c in each.commits] == [c for each in shown for c in each.commits]


def test_pictures_are_found_where_they_are_whole() -> None:
    def places(ids: tuple[int | None, ...], *stretches: FlatSpan) -> list[tuple[int, int]]:
        board = flat_canvas((MASK,) * len(ids), stretches)
        record = Record(Trajectory(board, ()), VOCAB, {}, (2, 2))
        return [(each.start, each.stop) for each in playback.picture_places(record, ids)]

    code = (CODE,) * 4
    assert places((TEXT, *code, TEXT, *code, *code)) == [(1, 5), (6, 10), (10, 14)]
    assert places((*code[:3], TEXT, *code)) == [(4, 8)]
    assert places((CODE, None, CODE, None), FlatSpan("image", 1, 4)) == [(0, 4)]
    assert places((CODE, None, CODE, None), FlatSpan("document", 1, 4)) == []


def test_a_picture_ends_as_its_codes_and_never_shows_what_is_to_come(tokenizer: ImageTokenizer) -> None:
    shown, (first,) = films_of(a_record(), tokenizer)
    decoded = to_picture(tokenizer.decode(torch.tensor([CODES]))[0])
    assert first.pictures[first.shown[-1]].tobytes() == decoded.tobytes()
    assert first.shown[1] == first.shown[2] and len(first.pictures) == 5
    _, (other,) = films_of(a_record((3, 1, 4, 9)), tokenizer)
    for number in range(len(shown) - 2):
        same = first.pictures[first.shown[number]], other.pictures[other.shown[number]]
        assert same[0].tobytes() == same[1].tobytes()
    assert first.pictures[first.shown[-1]].tobytes() != other.pictures[other.shown[-1]].tobytes()


def test_the_player_is_one_safe_page(tokenizer: ImageTokenizer) -> None:
    record = a_record()
    shown, films = films_of(record, tokenizer)
    page = player(record, shown, films, stats(record.trajectory, (1, 2)), fps=4, scale=3)
    script = re.search(r"<script>(.*?)</script>", page, re.S)
    assert script is not None and page.count("<script") == 2 and "alert(1)</script>" not in page
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page
    # What the prompt says in the template's own marks stays as it is: in the title and in the heading.
    assert "&lt;/script&gt;" in page and re.findall(r"@[A-Z]+@", page) == ["@DATA@"] * 2
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "seed 5" in page and "nested" not in page and "1 remasked" in page
    assert '<th scope="col">global@2</th>' in page and "8 of 8 positions" in page


def test_the_players_data_rebuild_every_frame(tokenizer: ImageTokenizer) -> None:
    record = a_record()
    shown, films = films_of(record, tokenizer)
    page = player(record, shown, films, stats(record.trajectory), fps=4, scale=3)
    found = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert found is not None
    data = json.loads(found[1])
    read = data["first"]
    for frame, expected in zip(data["frames"], shown, strict=True):
        for place, label in frame["diff"]:
            read[place] = label
        assert read == playback.labels(record, expected.ids)
        assert {place for place, _ in frame["fresh"]} == expected.fresh
    assert data["classes"] == "mttttmpppp" and data["slots"] == 8
    assert data["frames"][1]["log"] == [["write", 1, "a", -0.5], ["write", 6, "code 3", -0.5]]
    assert data["frames"][2]["log"][1][:3] == ["write", 4, "end"]
    uri = data["films"][0]["pictures"][data["films"][0]["shown"][-1]]
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert picture.tobytes() == films[0].pictures[-1].tobytes()


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_has_a_frame_a_step_and_tiles_where_codes_are_open(
    tokenizer: ImageTokenizer, kind: Any
) -> None:
    record = a_record(prompt="red apple")
    shown, films = films_of(record, tokenizer)
    drawn = list(animation.frames_of(record, shown, films, 10))
    assert len(drawn) == len(shown) + 1 and len({each.size for each in drawn}) == 1
    left, top = animation.MARGIN + 20, animation.MARGIN + 20
    tiles = {tuple(int(tile[i : i + 2], 16) for i in (1, 3, 5)) for tile in animation.TILES}
    for number, each in enumerate(drawn[:-1]):
        for cell, place in enumerate(films[0].places):
            at = left + cell % 2 * 40, top + cell // 2 * 40
            assert (each.getpixel(at) in tiles) == (shown[number].ids[place] is None)
    with Image.open(io.BytesIO(animation.encode(drawn, kind, fps=4))) as moving:
        assert moving.format == kind and getattr(moving, "n_frames", 1) == len(drawn)
        for number, each in enumerate(drawn):
            moving.seek(number)
            moving.load()
            assert moving.info["duration"] == (2000 if number == len(drawn) - 1 else 250)
            off = ImageStat.Stat(ImageChops.difference(moving.convert("RGB"), each)).rms
            assert max(off) < 8
            if kind == "GIF":  # the marks keep their colours
                seen = {colour for _, colour in moving.convert("RGB").getcolors(1 << 20) or []}
                changed = {commit.kind for f in shown[number : number + 1] for commit in f.commits}
                assert {
                    ImageColor.getrgb(animation.EDGES[kind]) for kind in changed if kind != "edit"
                } <= seen


def test_long_words_wrap_inside_the_panel() -> None:
    font = animation._font(animation.SIZE)
    pieces = [
        animation.Piece(each, "#000000") for each in ("mississippi" * 9, " and a", "\n", *"·" * 90, " b")
    ]
    lines = animation._wrap(pieces, font, 200)
    assert max(sum(font.getlength(each.text) for each in line) for line in lines) <= 200 and len(lines) > 4
    assert (
        "".join(each.text for line in lines for each in line).replace(" ", "")
        == "mississippi" * 9 + "anda" + "·" * 90 + "b"
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: ImageTokenizer) -> Path:
    """A folder with a model that can only draw, and a trajectory that it wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CM3KIT_MODEL", raising=False)
    (tmp_path / "tiny/image").mkdir(parents=True)
    tokenizer.save(tmp_path / "tiny/image")
    (tmp_path / "tiny/model_index.json").write_text("{}")
    record = a_record(prompt="red apple")
    record = Record(
        record.trajectory, VOCAB, record.pieces, (2, 2), "tiny", fingerprints(tmp_path / "tiny"), record.how
    )
    (tmp_path / "a.traj.safetensors").write_bytes(encode_trajectory(record))
    return tmp_path


Capture = pytest.CaptureFixture[str]


def test_show_traj_writes_the_player_beside_the_file(place: Path, capsys: Capture) -> None:
    assert run(["show", "traj", "a.traj.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert out == "a.traj.html\n" and "AR-ness of text positions: local@1" in err and "warning" not in err
    page = (place / "a.traj.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "<h1>red apple</h1>" in page
    assert run(["show", "traj", "a.traj.safetensors"]) == 1
    assert "[exists]" in capsys.readouterr().err
    assert run(["show", "traj", "a.traj.safetensors", "--force", "-q", "--scale", "2"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["show", "traj", "a.traj.safetensors", "-o", "new/deep/", "-q"]) == 0
    assert capsys.readouterr().out == "new/deep/a.traj.html\n"
    assert run(["show", "traj", "a.traj.safetensors", "-o", "-", "-q"]) == 0
    assert capsys.readouterr().out == (place / "new/deep/a.traj.html").read_text(encoding="utf-8")


def test_show_traj_answers_in_json(place: Path, capsys: Capture) -> None:
    assert run(["show", "traj", "a.traj.safetensors", "-o", "b.gif", "--json", "--fps", "10"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert err == "" and answer["command"] == "show traj" and answer["data"]["path"] == "b.gif"
    assert answer["data"]["stats"]["arness"]["image"]["slots"] == 4 and answer["data"]["frames"] == 7
    with Image.open(place / "b.gif") as moving:
        assert moving.format == "GIF" and moving.info["duration"] == 100


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["gone.traj.safetensors"], 1, "no_file"),
        (["tiny/model_index.json"], 1, "bad_data"),
        (["a.traj.safetensors", "-o", "x.mp4"], 1, "bad_value"),
        (["a.traj.safetensors", "--model", "nosuch"], 1, "unknown_model"),
        (["a.traj.safetensors", "--model", "pictures"], 1, "bad_checkpoint"),
        (["a.traj.safetensors", "--fps", "nan"], 2, "usage"),
        (["a.traj.safetensors", "--json", "-o", "-"], 2, "usage"),
    ],
)
def test_show_traj_fails_in_one_line(
    place: Path, capsys: Capture, arguments: list[str], status: int, code: str
) -> None:
    before = sorted(place.rglob("*"))
    assert run(["show", "traj", *arguments]) == status
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"[{code}]" in err and sorted(place.rglob("*")) == before


def test_another_image_tokenizer_is_named(place: Path, capsys: Capture, tokenizer: ImageTokenizer) -> None:
    record = a_record()
    drawn_by, warning = playback.open_image_tokenizer(
        Record(record.trajectory, VOCAB, record.pieces, (2, 2), "tiny", {playback.WEIGHTS: "00"}), None
    )
    assert drawn_by.grid == (2, 2) and "differs from" in warning
    with pytest.raises(ModelError, match="2x2 codes out of 16"):
        playback.open_image_tokenizer(Record(record.trajectory, Vocab(256, 99), {}, (2, 2), "tiny"), None)


def test_large_pictures_get_fewer_frames(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "MOST_PIXELS", 8 * 8 * 3)
    monkeypatch.setattr(showing, "FEWEST_FRAMES", 2)
    record = a_record()
    made = showing.animate(record, "HTML", stats(record.trajectory))
    assert made.frames == 3 and made.steps == 6 and "6 steps are shown in 2 frames" in made.warnings
