"""What answers are worth, and what is asked: rewards, prompts and their files."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from toys import toy

from cm3kit.evaluation.judge import Judge
from cm3kit.training.rl.prompts import read_items, split
from cm3kit.training.rl.rewards import RewardContext, Rewards, Sample, known, read_settings
from cm3kit.training.rl.rewards.match import edit_distance
from cm3kit.training.rl.rewards.page import validity
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError

torch.set_num_threads(1)


def judged(
    name: str, samples: list[Sample], prompts: list[str] | None = None, **settings: Any
) -> list[float | None]:
    (chosen,) = read_settings([{"name": name, **settings}])
    made = known()[name](chosen, RewardContext(toy(), "cpu"))
    return list(made(samples, prompts or [each.prompt for each in samples]))


def words(*texts: str, **more: Any) -> Sample:
    return Sample("a prompt", more.pop("group", 0), texts, **more)


def square(colour: str, side: int = 64) -> Image.Image:
    made = Image.new("RGB", (side, side), "white")
    made.paste(colour, (16, 16, 48, 48))
    return made


def test_texts_are_compared_with_those_that_stood_there() -> None:
    samples = [
        words("A  red apple", answers=("a red apple",)), words("red", "b", answers=("bed", None)),
        words("x", answers=(None,)), words("", answers=("",)),
    ]  # fmt: skip
    assert judged("exact", samples) == [1.0, 0.0, None, 1.0]
    assert judged("exact", samples, case=True)[0] == 0.0
    assert judged("edit", samples) == [1.0, pytest.approx(2 / 3), None, 1.0]
    assert [edit_distance(*each) for each in (("", "abc"), ("kitten", "sitting"), ("ab", "ba"))] == [3, 3, 2]


def test_lengths_are_held_to_hints_columns_and_settings() -> None:
    samples = [
        words("x", tokens=12, hints=(12,)), words("x", tokens=24, hints=(12,)), words("x", tokens=18, hints=(12,)),
        words("x", tokens=8, meta={"length": 8}), words("x", tokens=8), words("x", tokens=12, hints=(12,), ended=False),
    ]  # fmt: skip
    assert judged("length", samples) == [1.0, 0.0, pytest.approx(2 / 3), 1.0, None, 0.0]
    assert judged("length", samples[4:5], tokens=8) == [1.0]


def test_pages_are_in_order_or_not_and_nothing_in_them_runs(tmp_path: Path) -> None:
    good = '<!DOCTYPE html><title>t</title><p>Text <em>here</em></p><img alt="" src="data:,">'
    assert validity(good) == 1
    for bad in (
        "<p>x</p><em>open",
        '<p id="a">x</p><p id="a">y</p>',
        '<p>x</p><img src="">',
        "<div><span>x</div>",
    ):
        assert 0 < validity(bad) < 1, bad
    flag = tmp_path / "ran"
    hostile = f"<script>require('fs').writeFileSync('{flag}', '')</script><img src=x onerror=alert(1) alt=''>"
    values = judged("valid-page", [words("x", html=hostile), words("x"), words("x", html=good, ended=False)])
    assert values == [1.0, None, 0.5] and not flag.exists()


def test_pictures_are_there_and_differ() -> None:
    red, green = square("red"), square("green")
    samples = [
        words(image=red, group=1), words(image=green, group=1),
        words(image=Image.new("RGB", (64, 64)), group=2), words(),
    ]  # fmt: skip
    assert judged("picture", samples) == [1, 1, 0, 0]
    twins = [words(image=red, group=1), words(image=red, group=1)]
    assert judged("variety", twins) == [0, 0]
    apart = judged("variety", samples[:2])
    assert apart[0] == apart[1] and 0.5 < float(apart[0] or 0) <= 1
    assert judged("variety", samples[2:3]) == [None]
    assert judged("variety", [words("abc"), words("abd"), words("abc")]) == [
        pytest.approx(1 / 6), pytest.approx(1 / 3), pytest.approx(1 / 6)
    ]  # fmt: skip


@pytest.fixture()
def reference(tmp_path: Path) -> Path:
    rows = []
    for colour in ("red", "green", "blue"):
        square(colour).save(tmp_path / f"{colour}.png")
        rows.append({"name": f"{colour} square", "picture": f"{colour}.png"})
    (tmp_path / "reference.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "reference.jsonl"


def test_a_drawn_picture_is_judged_by_the_fixed_feature(reference: Path) -> None:
    samples = [
        Sample("red square", 0, image=square("red")), Sample("red square", 0, image=square("#e02020")),
        Sample("red square", 0, image=square("blue")), Sample("unknown thing", 0, image=square("red")),
        Sample("red square", 0), Sample("a square", 0, image=square("green"), meta={"name": "green square"}),
    ]  # fmt: skip
    assert judged("judged", samples, reference=str(reference)) == [
        1,
        1,
        pytest.approx(0.5, abs=0.17),
        None,
        0,
        1,
    ]
    assert judged("judged", samples, reference=str(reference), score="top1") == [1, 1, 0, None, 0, 1]
    for wrong in ({}, {"reference": "x", "classifier": "y"}, {"reference": "x", "score": "probability"}):
        with pytest.raises(ValueError, match=r"reference|classifier"):
            read_settings([{"name": "judged", **wrong}])
    with pytest.raises(DataError, match="no corpus"):
        judged("judged", samples, reference=str(reference.parent / "none"))


def test_a_drawn_picture_is_judged_by_a_classifier(tmp_path: Path) -> None:
    judge = Judge(["green square", "red square"], ["somebody"]).eval()
    judge.save(tmp_path)
    samples = [Sample("red square", 0, image=square("red")), Sample("blue square", 0, image=square("blue"))]
    (found, unknown) = judged("judged", samples, classifier=str(tmp_path), score="probability")
    assert unknown is None and 0 < float(found or 0) < 1
    with pytest.raises(ConfigError, match=r"no judge\.json"):
        judged("judged", samples, classifier=str(tmp_path / "none"))


def test_words_and_pictures_agree_by_the_model_itself() -> None:
    codes = tuple(range(16))
    samples = [
        Sample("a red apple", 0, codes=codes),
        Sample("the table", 1, codes=codes),
        Sample("the table", 1),
    ]
    one, other, none = judged("agreement", samples, ["a red apple", "the table"])
    assert none is None and 0 < float(one or 0) < 1
    # Between two prompts the shares of one picture add up to 1.
    assert float(one or 0) + float(other or 0) == pytest.approx(1, abs=1e-5)
    assert judged("agreement", samples[:1], ["a red apple"]) == [None]


def python(code: str) -> str:
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


ANSWER = "import sys, json\nfor line in sys.stdin:\n    row = json.loads(line)\n    print(json.dumps({}), flush=True)"


def test_a_command_reads_samples_and_rates_them() -> None:
    samples = [words("abc", meta={"k": 2}), words("a", meta={"k": 1}), words("", meta={"k": 0})]
    code = ANSWER.format("{'reward': len(row['texts'][0]) / row['meta']['k']} if row['meta']['k'] else None")
    assert judged("command", samples, command=python(code)) == [1.5, 1.0, None]
    pictured = ANSWER.format("row['image'][:4]").replace("json.dumps", "len")
    assert judged("command", [words(image=square("red"))], command=python(pictured), pictures=True) == [4]


def test_a_command_that_takes_too_long_is_ended_with_its_children(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = tmp_path / "pid"
    code = (
        f"import subprocess, sys, time\nchild = subprocess.Popen(['sleep', '60'])\nopen({str(pid)!r}, 'w')"
        ".write(str(child.pid))\nprint('0.5\\n0.', end='', flush=True)\ntime.sleep(60)"
    )
    start = time.monotonic()
    assert judged("command", [words("a"), words("b")], command=python(code), timeout=3) == [0.5, None]
    assert time.monotonic() - start < 30 and "1 of 2 samples are left out" in capsys.readouterr().err
    child = int(pid.read_text())
    for _ in range(100):
        try:
            os.kill(child, 0)
            if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
                break
        except OSError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child of the command is still there")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("print('x')", "has to be a number"), ("print('true')", "has to be a number"), ("print('1e999')", "number"),
        ("pass", "answered 0 of 1"), ("import sys; sys.exit('no judge')", "status 1: no judge"),
    ],
)  # fmt: skip
def test_a_command_that_does_not_rate_is_told(code: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        judged("command", [words("a")], command=python(code))


def test_a_command_that_is_not_there_is_told() -> None:
    with pytest.raises(DataError, match="cannot be started"):
        judged("command", [words("a")], command="/no/such/program")
    with pytest.raises(ValueError, match="names no program"):
        read_settings([{"name": "command", "command": "  "}])


def test_several_rewards_are_weighed_and_none_leaves_out() -> None:
    chosen = read_settings(
        ["exact", {"name": "length", "weight": 2, "tokens": 4}, {"name": "length", "tokens": 9}]
    )
    made = Rewards(chosen, RewardContext(toy(), "cpu"))
    found = made([words("a", answers=("a",), tokens=4), words("a", answers=(None,), tokens=4)], ["p", "p"])
    assert found.totals == [pytest.approx(3.0, abs=0.7), None] and list(found.parts) == [
        "exact",
        "length 1",
        "length 2",
    ]
    with pytest.raises(Cm3kitError, match=r"unknown reward 'exakt'.*exact"):
        read_settings(["exakt"])


def test_prompts_are_lines_rows_or_pages(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a red apple\n\n the table \n")
    assert [(each.name, each.task) for each in read_items(tmp_path / "a.txt", "image")] == [
        ("a red apple", "image"), ("the table", "image")
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 2 3 = 6", "numbers": [1, 2, 3], "answer": "1+2+3"}\n')
    (row,) = read_items(tmp_path / "rows.jsonl", "text")
    assert row.answers == ("1+2+3",) and row.meta == {"numbers": [1, 2, 3]}
    (tmp_path / "rows.csv").write_text('prompt,answer,level\n"1, 2","1+2",easy\nsun,,\n')
    first, second = read_items(tmp_path / "rows.csv", "text")
    assert (first.prompt, first.answers, first.meta) == ("1, 2", ("1+2",), {"level": "easy"})
    assert second.answers == () and not second.meta
    (tmp_path / "list.csv").write_text("prompt,answer\none,[1]\n")
    assert read_items(tmp_path / "list.csv", "text")[0].answers == ("[1]",)
    table = pytest.importorskip("pyarrow").table(
        {"prompt": ["a", "b"], "answer": ["x", None], "answers": [None, ["y"]], "level": [1, None]}
    )
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "rows.parquet")
    found = read_items(tmp_path / "rows.parquet", "text")
    assert [(each.answers, each.meta) for each in found] == [(("x",), {"level": 1}), (("y",), {})]
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "one.html").write_text(
        '<title>Fruit &amp; more</title><p class="x">A red apple</p><p><mask></p>'
    )
    (page,) = read_items(pages, "infill", ["p.x", "title"])
    assert page.answers == ("Fruit & more", "A red apple", None) and page.page is not None
    (tmp_path / "html.jsonl").write_text(
        '{"html": "<p><mask></p>", "answers": ["so"]}\n{"page": "pages/one.html"}\n'
    )
    inline, named = read_items(tmp_path / "html.jsonl", "infill")
    assert inline.answers == ("so",) and named.answers == (None,)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("[1]", "not a JSON object"), ("{", "not a JSON object"), ('{"prompt": 1}', "needs one of: prompt"),
        ('{"prompt": "a", "answer": 3}', "answers are texts"),
        ('{"prompt": "a", "answer": "b", "answers": []}', "both answer and answers"),
    ],
)  # fmt: skip
def test_malformed_rows_are_named(tmp_path: Path, row: str, told: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "fine"}\n' + row)
    with pytest.raises(DataError, match=f"line 2.*{told}"):
        read_items(tmp_path / "rows.jsonl", "text")


def test_sources_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for source, task in (
        (tmp_path, "image"),
        (tmp_path / "a.txt", "infill"),
        (tmp_path / "none.txt", "image"),
    ):
        with pytest.raises(Cm3kitError):
            read_items(source, task)  # type: ignore[arg-type]
    (tmp_path / "b.jsonl").write_text('{"html": "<p><mask></p>", "answers": ["a", "b"]}')
    with pytest.raises(DataError, match="1 gaps and 2 answers"):
        read_items(tmp_path / "b.jsonl", "infill")


def test_the_same_prompts_are_held_out_whatever_else_there_is(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("\n".join(f"prompt {number}" for number in range(400)))
    items = read_items(tmp_path / "many.txt", "image")
    learned, held = split(items, 0.1)
    assert 20 < len(held) < 60 and len(learned) + len(held) == 400
    again = {each.name for each in split(items[::2], 0.1)[1]}
    assert again == {each.name for each in held} & {each.name for each in items[::2]}
    assert len(split(items[:2], 0.1)[1]) == 1 and split(items, 0)[1] == []
