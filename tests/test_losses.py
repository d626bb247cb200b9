"""What does not reach a model as it is: cuts and drops are said, and what would be lost whole is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sites import make_pages

from cm3kit.config import resolve
from cm3kit.data.corpus import load_documents
from cm3kit.data.pictures import load_pictures
from cm3kit.data.prepared import texts_of
from cm3kit.data.words import unknown_words
from cm3kit.training import losses
from cm3kit.training import run as train_kind
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.prompts import prompts_of
from cm3kit.training.vqgan import VqganRecipe, VqganTask
from cm3kit.web.runner import prepare
from cm3kit_cli.main import run
from cm3kit_tokenizers import Vocab
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig

torch.set_num_threads(1)
EMOJI = Path(__file__).parents[1] / "checkpoints/pictures/text"
Capture = pytest.CaptureFixture[str]
SHAPE = {
    "resolution": 16, "channels": (8, 8, 8), "codes": 32, "code_dim": 4, "latent_channels": 8, "norm_groups": 8,
    "attention": False,
}  # fmt: skip
BACKBONE = {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages, and tokenizers beside them; two pictures are missing, and one page is long."""
    folder = tmp_path_factory.mktemp("losses")
    pages = make_pages(folder / "pages", 24)
    (pages / "3.png").unlink()
    (pages / "5.png").unlink()
    (pages / "07.html").write_text("<title>Long</title><p>" + "word and word " * 80 + "</p>")
    with torch.random.fork_rng(devices=[]):
        ImageTokenizer(ImageTokenizerConfig.model_validate(SHAPE)).save(folder / "image")
    TextTokenizer.train(["this page shows a red square on paper"] * 2, 300).save(folder)
    prepare(str(pages), folder / "prepared", workers=0)
    return folder


def recipe(site: Path, **changes: Any) -> DecoderRecipe:
    own = {
        "data": str(site / "pages"),
        "text": str(site),
        "image": str(site / "image"),
        "window": 128,
        "backbone": BACKBONE,
    }
    return resolve(
        DecoderRecipe, [{**own, "loop": {"steps": 4, "batch_size": 2, "validate_every": 0}}, changes]
    )


def test_slices_and_missing_pictures_are_counted_and_shown(site: Path, tmp_path: Path) -> None:
    task = DecoderTask(recipe(site), tmp_path / "cache")
    (line,) = task.notes
    long = sum(each > 126 for each in task.documents.lengths)
    assert long == 1 and f"{len(task.documents.ids)} pages, {long} (4%) longer than 126 ids" in line
    assert "2 pictures are left out" in line
    # What was parsed once is counted as it was.
    assert DecoderTask(recipe(site), tmp_path / "cache").notes == [line]
    told: list[str] = []
    flags = [
        f"{name}={site / where}" for name, where in (("data", "pages"), ("text", ""), ("image", "image"))
    ]
    flags += [f"backbone.{name}={value}" for name, value in BACKBONE.items()]
    flags += ["window=128", "loop.steps=4", "loop.batch_size=2", "loop.log_every=1", "loop.preview_every=0"]
    train_kind("cm3", [], flags, tmp_path / "run", device="cpu", warn=told.append, max_steps=2)
    assert told[0] == line and "stopped after step 2 of 4 as --max-steps says" in told[1]
    train_kind("cm3", [], flags, tmp_path / "run", device="cpu", warn=told.append)
    rows = [json.loads(each)["filled"] for each in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert told[-1] == f"rows: {sum(rows) / 4:.0%} of their positions held an id"
    assert not (tmp_path / "run/previews").exists()
    assert "2 pictures are left out" in (tmp_path / "run/report.html").read_text()


def test_shards_say_what_was_cut() -> None:
    line = losses.of_shards({"sliced": 3, "pages": 12, "too_short": 1}, [50, 200], 126)
    assert "2 documents, 1 (50%) longer than 126 ids" in line and "3 (25%) of 12 pages were cut" in line
    assert (
        losses.of_shards({}, [5], 126) == "data: 1 documents, 0 (0%) longer than 126 ids and read in slices"
    )


@pytest.mark.parametrize(("objective", "least"), [("cm3", 22), ("causal-blocks", 44)])
def test_a_picture_that_no_row_holds_is_refused_with_the_numbers(
    objective: str, least: int, site: Path, tmp_path: Path
) -> None:
    asked = {"objective": {"name": objective}, "window": least - 1}
    with pytest.raises(
        ConfigError, match=rf"window = {least - 1}: a picture has 16 codes.*window of {least} ids"
    ):
        DecoderTask(recipe(site, **asked), tmp_path)
    DecoderTask(recipe(site, **{**asked, "window": least}), tmp_path)


def test_codes_that_have_not_started_are_neither_shown_nor_exported(site: Path, tmp_path: Path) -> None:
    def task(start: int, steps: int) -> VqganTask:
        asked = {"data": str(site / "pages"), "tokenizer": SHAPE, "codebook": {"start": start}, "shift": 1}
        return VqganTask(resolve(VqganRecipe, [{**asked, "loop": {"steps": steps}}]))

    with pytest.raises(ConfigError, match="before there is a code"):
        task(10, 10)
    unready = task(9, 10)
    assert unready.validate(unready.model, 4) == {}
    for act in (
        lambda: unready.preview(unready.model, tmp_path / "p"),
        lambda: unready.export(unready.model, tmp_path),
    ):
        with pytest.raises(ConfigError, match="before the codes have started"):
            act()
    assert not list(tmp_path.iterdir())
    batch, rng = unready.batch(torch.Generator().manual_seed(0), 2), torch.Generator().manual_seed(0)
    assert "used" not in unready.loss(unready.model, batch, 0, rng)[1]
    unready.loss(unready.model, batch, 8, rng)
    assert "used" in unready.loss(unready.model, batch, 9, rng)[1]
    unready.preview(unready.model, tmp_path / "p")
    assert (tmp_path / "p.png").is_file() and unready.validate(unready.model, 4)["psnr"] > 0


def test_tokenizers_are_trained_on_prepared_pages(site: Path, tmp_path: Path) -> None:
    final = train_kind(
        "text", [], [f"data={site / 'prepared'}", "size=300", "held_out=0.5"], tmp_path / "text"
    )
    read = " ".join(texts_of(site / "prepared", 0.5))
    every = " ".join(texts_of(site / "prepared"))
    assert 0 < len(read) < len(every) and "word and word" in every
    assert unknown_words(final, f"{read} Zeppelin zeppelin") == ["zeppelin"]
    assert unknown_words(site, "zeppelin") == []  # it does not say what it was trained on
    names = load_pictures(site / "prepared", ImageTokenizer.load(site / "image")).names
    assert len(names) == len(set(names)) > 10


@pytest.mark.skipif(
    not (EMOJI / "words.txt").is_file(), reason="checkpoints/pictures is not in this checkout"
)
def test_the_model_that_ships_knows_its_words() -> None:
    assert unknown_words(EMOJI, "Red apple, rocket: the sun behind a cloud") == []
    assert unknown_words(EMOJI, "a cyberpunk zeppelin, a cyberpunk cat") == ["cyberpunk", "zeppelin"]


def test_prompts_are_what_pictures_are_called_and_then_titles(site: Path) -> None:
    text, image = TextTokenizer.load(site), ImageTokenizer.load(site / "image")
    tokenizer = PageTokenizer(text, Vocab(text.size, image.size))
    found = load_documents(site / "pages", tokenizer, image, site / "cache", "rest").ids
    assert len(found) == 1 and prompts_of(found, tokenizer)[0] == "a blue circle"
    assert set(prompts_of(found, tokenizer)[1:]) == {"blue circle", "Number 10"}
    assert prompts_of([], tokenizer) == ()


def test_what_is_missing_says_what_to_run_next(site: Path, tmp_path: Path, capsys: Capture) -> None:
    def said(kind: str, **named: Path) -> str:
        flags = [part for name, path in named.items() for part in ("--set", f"{name}={path}")]
        assert run(["train", kind, *flags, "-o", str(tmp_path / "run"), "-q"]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and not (tmp_path / "run").exists()
        return err

    nothing, pages = tmp_path / "nothing", site / "pages"
    assert f"{nothing} is no folder; name one of pages: --set data=FOLDER." in said("text", data=nothing)
    assert f"{nothing} is no folder; name one of pictures" in said("vqgan", data=nothing)
    missing = said("cm3", data=pages, text=nothing / "final")
    assert f"cm3kit train text --set data={pages} -o {nothing}" in missing and "make data" not in missing
    assert f"cm3kit train vqgan --set data={pages} -o {nothing}" in said(
        "cm3", data=pages, text=site, image=nothing
    )
    packed = said("cm3", data=site / "prepared", text=site, image=site / "image")
    assert "make shards of it with cm3kit data pack" in packed
    shutil.copytree(site / "pages", tmp_path / "unfinished/run")
    (tmp_path / "unfinished/run/config.yaml").write_text("size: 3\n")
    assert "has not finished; give its command again" in said(
        "cm3", data=pages, text=tmp_path / "unfinished/run/final"
    )
