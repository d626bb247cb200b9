"""Tasks: YAML files, figures that are right by hand, baselines, intervals, and runs that go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import toy, toy_kit

from cm3kit.claims import claim
from cm3kit.evaluation import task_run
from cm3kit.evaluation.bootstrap import bootstrap
from cm3kit.evaluation.task_baselines import baseline
from cm3kit.evaluation.task_files import SHIPPED, load_task, shipped
from cm3kit.evaluation.task_metrics import Prediction, metric
from cm3kit.evaluation.task_rows import filled, read_data
from cm3kit.evaluation.task_run import RunHow, run_task, table
from cm3kit.evaluation.words import compare
from cm3kit.fill.filling import Filled, FilledGap
from cm3kit_cli.main import run
from cm3kit_tokenizers import Page
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError, OutputError

LINKS = [
    ("a.b", "b", "a.b", ["a.b", "c.b"], "train"), ("a.b", "b", "a.b", ["a.b", "c.b"], "train"),
    ("p", "b", "a.b", ["a.b", "c.b"], "test"), ("p", "b", "c.b", ["a.b", "c.b"], "test"),
    ("q", "x", "x", ["x"], "test"), ("q", "y", "z.y", [], "test"),
]  # fmt: skip
NAMES = [
    ("red apple", "train"), ("green apple", "train"), ("red apple", "train"), ("big pear", "rest"), ("apple", "rest"),
]  # fmt: skip


@pytest.fixture
def links(tmp_path: Path) -> Path:
    folder = tmp_path / "links"
    folder.mkdir()
    rows = [
        {"page": page, "mention": mention, "title": title, "candidates": candidates, "split": split,
         "left": "a red <b> & ", "right": " apple"}
        for page, mention, title, candidates, split in LINKS
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "pictures").mkdir(parents=True)
    rows, pages = [], []
    for number, (name, split) in enumerate(NAMES):
        noise = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"pictures/s{number}.png")
        rows.append({"slug": f"s{number}", "name": name, "base": name, "split": split})
        page = f'<h1>{name}</h1><p>it is a {name}</p><p><img alt="x" src="pictures/s{number}.png"></p>'
        (folder / f"s{number}.html").write_text(page)
        pages.append({"page": f"s{number}.html", "split": split, "weight": 1})
    (folder / "entries.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in pages))
    return folder


def yaml_of(tmp_path: Path, name: str, change: Callable[[str], str] = lambda text: text) -> str:
    """A copy of a task that ships, changed."""
    path = tmp_path / f"my-{name}.yaml"
    path.write_text(change((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")), encoding="utf-8")
    return str(path)


def test_every_task_that_ships_is_whole() -> None:
    assert shipped() == [
        "caption", "draw", "entity-disambiguation", "entity-disambiguation-page", "entity-linking", "infill",
        "summarise", "summarise-left",
    ]  # fmt: skip
    for name in shipped():
        spec = load_task(name).spec
        assert spec.metric in metric and all(each in baseline for each in spec.baselines) and spec.about
        load_task(name).options({})


def test_links_are_chosen_as_scoring_ranks_them(links: Path, tmp_path: Path) -> None:
    kit = toy_kit()
    found = run_task(kit, load_task("entity-disambiguation"), RunHow(data=links, output=tmp_path / "out"))
    page = Page.parse(b'<meta charset="utf-8"><p>a red &lt;b&gt; &amp; <a title="<mask>">b</a> apple</p>')
    scores = kit.score(page, ["a.b", "c.b"])
    right = max((0, 1), key=lambda number: scores[number].logprob)
    figures = found["figures"]["model"]
    # One of the two ambiguous rows is right whichever title the model likes; x is the only candidate; z.y is none.
    assert figures["accuracy"]["value"] == pytest.approx(2 / 4)
    assert figures["accuracy_ambiguous"]["value"] == pytest.approx(1 / 2)
    assert figures["micro_f1"]["value"] == pytest.approx(2 * 2 / (3 + 4))
    assert figures["candidate_recall"]["value"] == pytest.approx(3 / 4)
    lines = [
        json.loads(line)
        for line in (tmp_path / "out/entity-disambiguation/rows.jsonl").read_text().splitlines()
    ]
    assert lines[0]["chosen"] == lines[1]["chosen"] == ["a.b", "c.b"][right]
    assert lines[0]["scores"] == pytest.approx({"a.b": scores[0].logprob, "c.b": scores[1].logprob}, abs=1e-4)
    prior, suffix = found["figures"]["anchor-prior"], found["figures"]["suffix-candidates"]
    assert prior["accuracy"]["value"] == 1 / 4 and prior["micro_f1"]["value"] == pytest.approx(2 / (2 + 4))
    assert suffix["accuracy"]["value"] == 2 / 4
    assert found["figures"]["chance"]["accuracy"]["value"] == pytest.approx((0.5 + 0.5 + 1) / 4)
    assert found["model_minus"]["chance"]["accuracy"]["value"] == pytest.approx(0) and found["groups"] == 2


def test_links_are_written_along_all_titles(links: Path, tmp_path: Path) -> None:
    (links / "titles.txt").write_text("a.b\nc.b\nx\nz.y\n")
    kit, task = toy_kit(), load_task("entity-linking")
    found = run_task(kit, task, RunHow(data=links, output=tmp_path / "out"))
    lines = [
        json.loads(line) for line in (tmp_path / "out/entity-linking/rows.jsonl").read_text().splitlines()
    ]
    page = Page.parse(
        b'<meta charset="utf-8"><p>a red &lt;b&gt; &amp; <a title="<mask trie=titles.txt>">b</a> apple</p>',
        links,
    )
    alone = kit.infill(page, options=task.options({}))[0].gaps[0]
    assert {line["text"] for line in lines} <= {"a.b", "c.b", "x", "z.y"} and lines[0]["text"] == alone.text
    figures = found["figures"]["model"]
    hits = [line["text"] == right for line, right in zip(lines, ("a.b", "c.b", "x", "z.y"), strict=True)]
    assert figures["accuracy"]["value"] == sum(hits) / 4 == figures["micro_f1"]["value"]
    assert figures["accuracy_ambiguous"]["value"] == sum(hits[:2]) / 2
    assert figures["accuracy_unseen"]["value"] == pytest.approx(
        sum(hits[1:]) / 3
    )  # a.b alone is in the known rows
    prior = found["figures"]["anchor-prior"]
    assert prior["accuracy"]["value"] == 1 / 4 and prior["micro_f1"]["value"] == pytest.approx(2 / (2 + 4))
    assert found["figures"]["suffix-candidates"]["accuracy"]["value"] == 2 / 4
    assert found["figures"]["most-common"]["accuracy"]["value"] == 1 / 4


def test_titles_that_were_cut_are_no_answers(links: Path) -> None:
    judge = metric["linking"](read_data(load_task("entity-linking"), links, None))
    row = read_data(load_task("entity-linking"), links, None).rows[0]
    for satisfied, hit in ((True, 1.0), (False, 0.0)):
        gap = FilledGap(0, "attribute", "a.b", -1.0, satisfied, 1, 4, satisfied)
        found = judge(row, task_run._prediction(toy_kit(), Filled(b"", [gap], 0, 0)))
        assert found["accuracy"] == (hit, 1.0) and found["micro_f1"] == (2 * hit, 1.0 + hit)


def test_shards_come_to_the_figures_of_the_whole(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit, task, how = toy_kit(), load_task("caption"), RunHow(data=pictures, output=tmp_path / "out")
    whole = run_task(kit, task, replace(how, output=None))
    first = run_task(kit, task, replace(how, shard=(1, 2)))
    assert first["missing"] == 1 and "1 of 2 rows are there" in table(first)[0]
    assert not (tmp_path / "out/caption/results.json").exists()
    second = run_task(kit, task, replace(how, shard=(0, 2)))
    assert second == whole and json.loads((tmp_path / "out/caption/results.json").read_text()) == json.loads(
        json.dumps(whole)
    )
    with pytest.raises(ConfigError, match="-o"):
        run_task(kit, task, replace(how, output=None, shard=(0, 2)))
    with claim(tmp_path / "out/caption", (2, 4)), pytest.raises(OutputError, match="2/4"):
        run_task(kit, task, replace(how, shard=(0, 2)))
    line = [
        "eval",
        "tasks",
        "caption",
        "-m",
        str(toy()),
        "--data",
        str(pictures),
        "-q",
        "-o",
        str(tmp_path / "two"),
    ]
    assert run([*line, "--shard", "0/2"]) == 3 and "1 of 2 rows" in capsys.readouterr().out
    assert run([*line, "--shard", "2/2"]) != 0
    assert run([*line, "--shard", "1/2"]) == 0 and "nearest-picture" in capsys.readouterr().out


def test_captions_infills_and_drawings(pictures: Path) -> None:
    kit = toy_kit()
    for name in ("caption", "infill"):
        found = run_task(kit, load_task(name), RunHow(data=pictures))
        again = run_task(kit, load_task(name), RunHow(data=pictures))
        assert found["figures"] == again["figures"] and found["rows"] == 2 and not found["failed"]
        assert set(found["figures"]) == {"model", *load_task(name).spec.baselines}
    data = read_data(load_task("infill"), pictures, None)
    assert [row.right for row in data.rows] == ["it is a big pear", "it is a apple"] and len(data.known) == 3
    drawn = run_task(kit, load_task("draw"), RunHow(data=pictures))
    assert set(drawn["figures"]["model"]) == {"top1", "top5"}
    assert drawn["figures"]["model"]["top5"]["value"] == 1  # of five pictures


def test_baselines_answer_as_they_say(pictures: Path) -> None:
    caption, draw = (read_data(load_task(name), pictures, None) for name in ("caption", "draw"))
    assert [baseline["most-common"](caption)(row).text for row in caption.rows] == ["red apple"] * 2
    # A known picture is the nearest to itself.
    nearest = baseline["nearest-picture"](caption)
    assert [nearest(row).text for row in caption.known] == [row.right for row in caption.known]
    words = baseline["nearest-words"](draw)(draw.rows[1])
    with Image.open(pictures / "pictures/s0.png") as opened:
        assert words.picture is not None and words.picture.tobytes() == opened.convert("RGB").tobytes()
    others = [baseline["chance"](caption)(row).text for row in caption.rows]
    assert others == [caption.rows[1].right, caption.rows[0].right]
    judge = metric["retrieval"](draw)
    for row in draw.rows:
        with Image.open(draw.picture(row)) as opened:
            assert judge(row, Prediction(picture=opened))["top1"] == (1.0, 1.0)


def test_leads_are_first_sentences(tmp_path: Path) -> None:
    rows = [
        {"page": "p", "split": "test", "text": "One is this. Two is that.\nMore.", "summary": "One is that"}
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = read_data(load_task("summarise"), tmp_path, None)
    assert baseline["lead-1"](data)(data.rows[0]).text == "One is this."
    assert b"<title></title>" in data.rows[0].page.data.replace(b"<mask>", b"")
    pytest.importorskip("rouge_score")
    judged = metric["rouge"](data)(data.rows[0], Prediction(text="One is this."))
    # Two of three words either way; one of two pairs.
    assert judged["rouge1"][0] == pytest.approx(2 / 3) and judged["rouge2"][0] == pytest.approx(1 / 2)


def test_words_are_judged_as_elsewhere(pictures: Path) -> None:
    data = read_data(load_task("caption"), pictures, None)
    judge = metric["words"](data)
    for said in ("big pear", " Big  pear ", "pear", "", "red apple"):
        found, theirs = (
            judge(data.rows[0], Prediction(text=said)),
            compare([" ".join(said.lower().split())], ["big pear"], [True]),
        )
        assert found["exact"][0] == theirs.exact and found["similarity"][0] == pytest.approx(
            theirs.similarity
        )


def test_intervals_are_of_groups_and_repeat() -> None:
    ratios, groups = [(1.0, 1.0)] * 8 + [(0.0, 1.0)] * 8, [str(number // 8) for number in range(16)]
    # Two groups, of which both, one or the other are drawn: 0, 1/2 or 1.
    wide = bootstrap(ratios, groups)
    assert (wide.value, wide.low, wide.high) == (0.5, 0.0, 1.0)
    rows = bootstrap(ratios, range(16))
    deviation = math.sqrt(0.25 / 16)
    assert rows.low == pytest.approx(0.5 - 1.96 * deviation, abs=0.07) and rows == bootstrap(
        ratios, range(16)
    )
    same = bootstrap(ratios, range(16), minus=ratios)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_run_goes_on_where_it_stopped(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit, task, how = toy_kit(), load_task("caption"), RunHow(data=pictures, output=tmp_path / "out")
    whole = run_task(kit, task, replace(how, output=None))
    run_task(kit, task, how)
    folder, asked = tmp_path / "out/caption", list[int]()
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text(lines[0] + lines[1][:20])  # as after kill -9
    written = task_run._written
    monkeypatch.setattr(
        task_run,
        "_written",
        lambda kit, rows, *rest: asked.extend(r.number for r in rows) or written(kit, rows, *rest),
    )
    told: list[str] = []
    again = run_task(kit, task, how, warn=told.append)
    assert asked == [json.loads(lines[1])["row"]] and "1 of 2" in told[0]
    assert again["figures"] == whole["figures"] and (folder / "rows.jsonl").read_text() == "".join(lines)
    assert json.loads((folder / "results.json").read_text())["figures"] == whole["figures"]
    with pytest.raises(ConfigError, match="seed"):
        run_task(kit, task, replace(how, seed=1))
    (folder / "rows.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="line 1"):
        run_task(kit, task, how)


def test_rows_that_cannot_be_asked_are_wrong_and_counted(links: Path) -> None:
    lines = (links / "rows.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace(
        '["a.b", "c.b"]', json.dumps(["a.b", "c.b" * 400])
    )  # more than the window holds
    (links / "rows.jsonl").write_text("\n".join(lines))
    told: list[str] = []
    found = run_task(toy_kit(), load_task("entity-disambiguation"), RunHow(data=links), warn=told.append)
    assert (found["rows"], found["failed"]) == (4, 1) and "count as wrong" in told[-1]
    right = found["figures"]["model"]["accuracy"]["value"]
    assert right in (1 / 4, 2 / 4) and found["methods"] == {"exact": 1}


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda text: text.replace("metric: words", "metric: wrods"), "words"),
        (lambda text: text.replace("{name}", "{nmae}"), "nmae"),
        (lambda text: text.replace("<mask>", ""), "mask"),
        (lambda text: text.replace("temperature", "temprature"), "temprature"),
        (lambda text: text + "baseline: [chance]\n", "baseline"),
        (lambda text: text.replace("rest, tone", "nothing"), "nothing"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    pictures: Path, tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    with pytest.raises(Cm3kitError, match=message) as caught:
        run_task(toy_kit(), load_task(yaml_of(tmp_path, "caption", change)), RunHow(data=pictures))
    assert "\n" not in str(caught.value)


def test_other_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="caption, draw"):
        load_task("captions")
    with pytest.raises(DataError, match="--data"):
        read_data(load_task("caption"), tmp_path / "none", None)
    with pytest.raises(OutputError):
        (tmp_path / "file").write_text("")
        with task_run.row_store(tmp_path / "file", {}):
            pass
    assert filled("{a}{b_html}", {"a": "<", "b_html": "<b>"}) == "&lt;<b>"


def test_the_command(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = yaml_of(tmp_path, "caption")
    asked = ["eval", "tasks", mine, "infill", "-m", str(toy()), "--data", str(pictures), "--limit", "1", "-q"]
    assert run([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["data"]["tasks"]
    assert [each["task"] for each in told] == ["my-caption", "infill"] and told[0]["rows"] == 1
    assert len(told[0]["job"]["model_sha256"]) > 0 and len(told[0]["job"]["data_sha256"]) == 64
    assert run([*asked, "--decoder", "diffusion"]) == 0
    shown = capsys.readouterr().out
    assert (
        shown.splitlines()[0].startswith("my-caption: the name of a picture") and "nearest-picture" in shown
    )
    assert table(told[1])[0] in shown
    assert run(["eval", "tasks", "no-task", "-m", str(toy())]) != 0
    assert "no-task" in capsys.readouterr().err
