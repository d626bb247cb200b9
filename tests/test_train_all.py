"""`cm3kit train all`: from a folder of pages to a model that is used, and what bad input gets."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sites import TINY, make_pages

import cm3kit
from cm3kit.fill.finding import find, local
from cm3kit.pipeline import Request, stages, train_all
from cm3kit.pipeline import run as runs
from cm3kit.pipeline.held import compared, unigram
from cm3kit.pipeline.plan import Plan
from cm3kit.quantities import duration, read_duration, read_memory
from cm3kit.training.interrupts import Paused
from cm3kit_cli.main import run
from cm3kit_tokenizers import Vocab
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError, ModelError, OutputError
from cm3kit_tokenizers.text import TextTokenizer

torch.set_num_threads(1)
Made = tuple[Path, list[str], list[tuple[int, str]]]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pages(tmp_path_factory.mktemp("site") / "pages")


def asked(pages: Path, output: Path, **changes: Any) -> Request:
    return Request(str(pages), output, **{"preset": "tiny", "overrides": TINY, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def made(pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model, the lines of its plan, and its progress."""
    output = tmp_path_factory.mktemp("models") / "mine"
    lines: list[str] = []
    heard: list[tuple[int, str]] = []
    train_all(
        asked(pages, output), tell=lines.extend, watch=lambda done, total, note: heard.append((done, note))
    )
    return output, lines, heard


def test_one_call_makes_a_model_that_generates_and_fills(made: Made, tmp_path: Path, capsys: Capture) -> None:
    output, lines, heard = made
    kit = cm3kit.load(output, device="cpu")
    result = kit.generate("a red square", seed=1)[0]
    assert result.image is not None and result.image.size == (16, 16)
    told = kit.info()
    assert "24" in told["summary"] and "train all" in told["summary"]
    command = ["generate", "a red zeppelin", "-m", str(output), "--temperature", "0"]
    assert run([*command, "-n", "2", "-o", f"{tmp_path}/x/"]) == 0
    err = capsys.readouterr().err
    assert "has never seen the words 'zeppelin'" in err and "all 2 results are equal" in err
    assert run([*command, "-n", "2", "-q", "-o", f"{tmp_path}/y/"]) == 0
    assert capsys.readouterr().err == ""
    shown = "\n".join(lines)
    assert "24 kept" in shown and "languages  en 24" in shown and "16 pixels, 4 x 4 codes of 32" in shown
    assert "in all" in shown and "MB" in shown
    done = [each for each, _ in heard]
    assert done == sorted(done) and any("picture tokenizer: step" in note for _, note in heard)
    assert all(note.endswith("left") for _, note in heard if "step 1" in note)


def test_the_report_has_the_plan_what_was_cut_and_held_out_bits(made: Made) -> None:
    output = made[0]
    page = (output / "report.html").read_text()
    for words in (
        "Planned and actual",
        "Held-out pages",
        "unigram model",
        "pages (",
        "are sliced",
        "Picture tokenizer",
    ):
        assert words in page
    assert "<script" not in page and "data:image/png" in page
    said = json.loads((output / ".runs/made.json").read_text())
    kinds = [what for what, *_ in compared(said["figures"])]
    assert kinds == ["text, bits per byte", "pictures, bits per code"]
    assert said["prompts"] and said["prompts"][0].startswith("a ")


def test_the_same_call_again_is_quick_and_another_request_is_refused(
    made: Made, pages: Path, tmp_path: Path
) -> None:
    output = made[0]
    before = (output / "manifest.json").read_bytes()
    again = train_all(asked(pages, output))
    assert again.plan.preset == "tiny" and (output / "manifest.json").read_bytes() == before
    for changes, words in (
        ({"decoder": "both"}, "begun with --decoder cm3, and now it is both"),
        ({"budget": 600.0}, "--budget"),
        ({"overrides": TINY[:-1]}, "--set"),
    ):
        with pytest.raises(ConfigError, match=words):
            train_all(asked(pages, output, **changes))
    other = make_pages(tmp_path / "others")
    with pytest.raises(ConfigError, match="begun with the pages"):
        train_all(asked(other, output))


def test_a_corpus_that_has_changed_is_refused_under_the_same_folder(
    made: Made, pages: Path, tmp_path: Path
) -> None:
    site, output = tmp_path / "site", tmp_path / "model"
    shutil.copytree(pages, site)
    train_all(asked(site, output), plan_only=True)
    (output / ".runs/plan.yaml").unlink()
    (site / "more.html").write_text("<p>One more page.</p>")
    with pytest.raises(ConfigError, match="started with another"):
        train_all(asked(site, output))


def test_the_runs_of_a_model_are_models_and_listed(
    made: Made, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = made[0]
    decoder = output / ".runs/decoder"
    assert find(decoder) == decoder / "model" and find(decoder / "final").samefile(decoder / "model")
    assert cm3kit.load(decoder, device="cpu").generate("a red square", seed=1)[0].image is not None
    for name, words in (("image", "run of an image tokenizer"), ("text", "run of a text tokenizer")):
        with pytest.raises(ModelError, match=words):
            find(output / ".runs" / name)
    assert [(each.path, each.kind) for each in local(output.parent)] == [("mine", "model")]
    listed = {each.path: each for each in local(output / ".runs")}
    assert listed["decoder"].state == "finished" and listed["image"].kind == "image tokenizer"
    monkeypatch.chdir(output.parent)
    assert run(["model", "list"]) == 0
    assert "mine (model, decoders cm3)" in capsys.readouterr().out


def test_a_decoder_alone_says_what_it_lacks(made: Made, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(made[0] / ".runs/decoder/final", alone)
    with pytest.raises(ModelError, match="lacks its text and image tokenizers"):
        find(alone)
    moved = tmp_path / "moved"
    shutil.copytree(made[0] / ".runs/decoder", moved, ignore=shutil.ignore_patterns("model"))
    recipe = (moved / "config.yaml").read_text().replace(str(made[0]), str(tmp_path / "gone"))
    (moved / "config.yaml").write_text(recipe)
    with pytest.raises(ModelError, match=r"lacks its text tokenizer, which was .*gone"):
        find(moved)
    shutil.rmtree(moved / "final")
    with pytest.raises(ModelError, match="12 of 12 steps are saved"):
        find(moved)


@pytest.mark.slow
def test_ctrl_c_in_every_stage_is_taken_up_again(
    made: Made, pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"

    def stop(*args: Any, **rest: Any) -> None:
        raise KeyboardInterrupt

    for where, function in (
        (runs, "read_pages"), (runs, "make_plan"), (stages, "_text"), (stages, "_image"), (stages, "_pack"),
        (stages, "_decoder"), (runs, "put_together"),
    ):  # fmt: skip
        with monkeypatch.context() as patched:
            patched.setattr(where, function, stop)
            with pytest.raises(Paused):
                train_all(asked(pages, output))
        assert not (output / "model_index.json").exists()
        with pytest.raises(ModelError, match="not finished"):
            find(output)
    train_all(asked(pages, output))
    # What was stopped and taken up is what was not stopped.
    for part in (
        "decoder/model.safetensors",
        "image/diffusion_pytorch_model.safetensors",
        "text/tokenizer.json",
    ):
        assert (output / part).read_bytes() == (made[0] / part).read_bytes()


def test_a_death_while_files_are_moved_is_taken_up(pages: Path, made: Made, tmp_path: Path) -> None:
    output = tmp_path / "copy"
    shutil.copytree(made[0], output)
    (output / ".runs/model").mkdir()
    (output / "model_index.json").rename(output / ".runs/model/model_index.json")
    request = json.loads((output / ".runs/request.json").read_text())
    assert request["pages"] == str(pages)
    again = train_all(asked(pages, output))
    assert cm3kit.load(output, device="cpu").parts.name == "copy"
    assert again.plan.main.data == output / ".runs/shards"  # where it is now


def test_a_full_disk_in_the_third_stage_is_one_line_and_taken_up(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    output = tmp_path / "model"
    flags = [part for each in TINY for part in ("--set", each)]
    command = ["train", "all", str(pages), "-o", str(output), "--preset", "tiny", *flags, "-q"]

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("cm3kit.training.progress.save_state", full)
        assert run(command) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert "the disk is full" in err and err.endswith("[no_space]")
    assert not list(output.rglob(".tmp-*")) and not (output / ".runs/image/final").exists()
    assert run(command) == 0
    assert capsys.readouterr().out == f"{output}\n"


def test_the_plan_stops_before_training_and_is_kept(pages: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "model"
    flags = [part for each in TINY for part in ("--set", each)]
    command = ["train", "all", str(pages), "-o", str(output), "--preset", "tiny", *flags, "--plan"]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "decoder" in out and "in all" in out and not (output / ".runs/text").exists()
    assert run([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["data"]["plan"]
    assert Plan.model_validate(plan).main.window == 96 and plan["costs"]["decoder"]["seconds"] > 0


def test_finished_parts_are_taken_and_their_stages_left_out(made: Made, pages: Path, tmp_path: Path) -> None:
    output, given = tmp_path / "model", made[0] / ".runs"
    own = tuple(each for each in TINY if each.split(".")[0] in ("decoder", "pack"))
    request = asked(
        pages, output, text=given / "text", image=given / "image/final", overrides=own, decoder="both"
    )
    found = train_all(request)
    assert "image" not in found.plan.costs and found.plan.main.window == 96
    kit = cm3kit.load(output, device="cpu")
    assert kit.parts.defaults.decoders == ("cm3", "diffusion")
    options = cm3kit.GenerateOptions(decoder="diffusion", steps=2)
    assert kit.generate("a red bar", options=options)[0].image is not None
    assert (output / "image/diffusion_pytorch_model.safetensors").read_bytes() == (
        given / "image/final/diffusion_pytorch_model.safetensors"
    ).read_bytes()


def test_prepared_pages_are_taken_as_they_are(made: Made, tmp_path: Path) -> None:
    prepared, output = tmp_path / "prepared", tmp_path / "model"
    shutil.copytree(made[0] / ".runs/data", prepared)
    plan = train_all(asked(prepared, output, decoder="diffusion"), plan_only=True).plan
    assert plan.survey.pages == 24 and plan.main.objective.name == "masked-diffusion"
    assert not (output / ".runs/data").exists()
    for changes in ({"overrides": (*TINY, "data.pictures.size=32")}, {"source": "folder"}):
        with pytest.raises(ConfigError, match="is prepared already"):
            train_all(asked(prepared, tmp_path / "other", **changes), plan_only=True)
    with pytest.raises(DataError, match="holds token shards"):
        train_all(asked(made[0] / ".runs/shards", tmp_path / "other"), plan_only=True)
    assert not (tmp_path / "other").exists()


def test_other_files_among_pages_are_told_of(pages: Path, tmp_path: Path) -> None:
    site, told = tmp_path / "site", []
    shutil.copytree(pages, site)
    (site / "table.csv").write_text("a,b\n1,2\n")
    train_all(asked(site, tmp_path / "model"), plan_only=True, warn=told.append)
    assert any("pages, which are read, and pairs, which are not" in line for line in told)


def bad_folder(kind: str, folder: Path) -> Path:
    if kind == "no pages":
        folder.mkdir()
        (folder / "a.txt").write_text("no page")
    elif kind == "no pictures":
        make_pages(folder, pictures=False)
    elif kind == "three pages":
        make_pages(folder, count=3)
    elif kind == "one large picture":
        make_pages(folder, pictures=False)
        Image.new("1", (8000, 8000)).save(folder / "large.png")
        (folder / "00.html").write_text('<p>Large: <img alt="large" src="large.png"></p>')
    return folder


@pytest.mark.parametrize(
    ("kind", "words", "flags"),
    [
        ("missing", "does not exist", []),
        ("no pages", "is of an unknown kind", []),
        ("no pictures", "0 pictures that can be used", []),
        ("three pages", "3 pages that can be used, and a model needs 20", []),
        ("one large picture", "1 pictures that can be used", []),
        ("pages", "a budget of 10 s trains nothing", ["--budget", "10s"]),
        ("pages", "'soon' is no time", ["--budget", "soon"]),
        ("pages", "too short for these pages", ["--budget", "1min"]),
        ("pages", "names no stage", ["--set", "loop.steps=3"]),
        ("pages", "did you mean", ["--set", "decoder.loop.step=3"]),
        ("pages", "a picture has 64 codes", ["--set", "decoder.window=70"]),
        ("pages", "should hold one file of weights", ["--image", "."]),
        ("pages", "a finished part has no recipe", ["--text", ".", "--set", "text.size=400"]),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    kind: str, words: str, flags: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pages(tmp_path / "pages") if kind == "pages" else bad_folder(kind, tmp_path / "bad")
    monkeypatch.chdir(tmp_path)
    if words.startswith("too short"):
        monkeypatch.setattr("cm3kit.pipeline.planner.LEAST", 10**6)  # too long a training for any machine
    status = run(["train", "all", str(folder), "-o", "model", "--preset", "tiny", *flags, "-q"])
    out, err = capsys.readouterr()
    assert status == 1 and out == "" and words in err and err.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_several_processes_are_refused_in_one_line(tmp_path: Path, capsys: Capture) -> None:
    assert (
        run(
            [
                "train",
                "all",
                str(tmp_path),
                "-o",
                str(tmp_path / "model"),
                "--num-processes",
                "2",
                "-q",
                "--decoder",
                "both",
            ]
        )
        == 2
    )
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.count("\n") == 1
        and "trains in one process" in err
        and "train block -c" in err
        and not (tmp_path / "model").exists()
    )


def test_a_large_picture_among_others_is_no_trouble(tmp_path: Path) -> None:
    folder = make_pages(tmp_path / "pages")
    Image.new("1", (8000, 8000)).save(folder / "0.png")
    plan = train_all(asked(folder, tmp_path / "model"), plan_only=True).plan
    assert plan.survey.pictures + sum(plan.survey.lost.values()) == 24 and plan.survey.sides[1] == 40


def test_what_is_there_is_not_written_over(made: Made, pages: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files"):
        train_all(asked(pages, tmp_path / "other"))
    copy = tmp_path / "copy"
    shutil.copytree(made[0], copy)
    runs.clean(asked(pages, copy))
    assert not (copy / ".runs").exists() and cm3kit.load(copy, device="cpu").parts.name == "copy"
    with pytest.raises(OutputError, match="is a model already"):
        train_all(asked(pages, copy))
    with pytest.raises(Cm3kitError, match="no finished model"):
        runs.clean(asked(pages, tmp_path / "other"))


def test_a_unigram_model_has_its_closed_form() -> None:
    import numpy as np

    vocab = Vocab(256, 4)
    text = TextTokenizer.train(["ab"], 256)
    counts = np.zeros(len(vocab), np.int64)
    counts[vocab.image.start : vocab.image.stop] = [5, 1, 0, 0]
    codes = [vocab.image.start, vocab.image.start + 3]
    found = unigram(counts, [codes, [vocab.text.start]], vocab, text)
    bits = -(np.log2(6 / 10) + np.log2(1 / 10)) / 2
    assert found["unigram_image_bits_per_code"] == pytest.approx(bits)
    assert found["unigram_text_bits_per_byte"] == pytest.approx(8)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min"), (1440, "24 min"), (3600, "1 h"), (5400, "1 h 30 min")],
)
def test_times_read_as_times(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert read_duration("1.5h") == 5400 and read_duration("2 min") == 120 and read_memory("2GiB") == 2**31
    for wrong in ("", "3", "h", "2 weeks", "1h and more"):
        with pytest.raises(ConfigError):
            read_duration(wrong)
