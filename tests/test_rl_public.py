"""A public model of text trained by its rewards on countdown, and the commands."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import public_folders
import pytest
import torch
from toys import toy

from cm3kit.fill.kit import GenerateOptions, load
from cm3kit.training.rl.recipe import RLRecipe
from cm3kit.training.run import kind_of
from cm3kit_cli.main import run

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
COUNTDOWN = ROOT / "samples/rl/countdown.py"


def countdown() -> ModuleType:
    spec = importlib.util.spec_from_file_location("countdown", COUNTDOWN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_judge_of_countdown_reads_expressions_and_runs_nothing(tmp_path: Path) -> None:
    worth, flag = countdown().worth, tmp_path / "ran"
    assert worth("(3 + 5) * 7 = 56", [3, 5, 7], 56) == 1 and worth("7*(5+3)", [3, 5, 7], 56) == 1
    assert worth("3+5+7", [3, 5, 7], 56) == 0.3 and worth("8*7", [3, 5, 7], 56) == 0.1
    for bad in (f"open({str(flag)!r}, 'w')", "3 +", "9**9**9", "1/0", "", "(" * 5000, "'3'"):
        assert worth(bad, [3, 5, 7], 56) == 0
    assert not flag.exists()
    for row in countdown().rows(20):
        assert len(row["numbers"]) == 3 and str(row["target"]) in row["prompt"]


@pytest.mark.parametrize(("family", "style"), [("llada", "chat"), ("dream", "plain")])
def test_a_public_model_is_trained_from_end_to_end(tmp_path: Path, family: str, style: str) -> None:
    model = public_folders.write(family, tmp_path)
    rows = [json.dumps(row) for row in countdown().rows(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    # A model of random weights never writes an equation, so that what it writes is rated by its digits too.
    judge = tmp_path / "judge.py"
    judge.write_text(
        "import sys, json\nsys.path.insert(0, sys.argv[1])\nfrom countdown import worth\nfor line in sys.stdin:\n"
        "    row = json.loads(line)\n    text = ' '.join(row['texts'])\n"
        "    right = worth(text, row['meta']['numbers'], row['meta']['target'])\n"
        "    print(right + sum(c.isdigit() for c in text) / 100, flush=True)"
    )
    command = shlex.join([sys.executable, str(judge), str(COUNTDOWN.parent)])
    settings = {
        "task": "text", "group": 4, "updates": 1, "held_share": 0.25, "sampling.prompt_style": style,
        "sampling.length": 8, "sampling.temperature": 1.0, "sampling.steps": 4, "loop.batch_size": 8, "loop.steps": 2,
        "loop.learning_rate": 1e-3, "loop.precision": "fp32", "loop.validate_every": 2, "loop.preview_every": 2,
    }  # fmt: skip
    given = [each for key, value in settings.items() for each in ("--set", f"{key}={value}")]
    args = ["train", "rl", "--from", str(model), "--prompts", str(tmp_path / "rows.jsonl"), "-q"]
    args += ["--estimator", "coupled", "--reward-command", command, "-o", str(tmp_path / "run"), *given]
    assert run(args) == 0
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2] and log[0]["ratio"] == pytest.approx(1, abs=1e-4)
    assert log[-1]["grad_norm"] > 0 and "held reward" in log[-1] and 0 <= log[-1]["held reward"] <= 2
    for step in ("step-000000", "step-000002"):
        assert "<table>" in (tmp_path / f"run/previews/{step}.html").read_text()
    options = GenerateOptions(length=8, steps=4, prompt_style=style)  # type: ignore[arg-type]
    before, after = (load(each) for each in (model, tmp_path / "run/final"))
    said = [kit.generate("1 2 3 = 6", task="text", options=options)[0].text for kit in (before, after)]
    assert all(text is not None for text in said)
    moved = [
        float((one - other).detach().abs().max())
        for one, other in zip(before.backbone.parameters(), after.backbone.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.1


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("a red apple")
    start = ["train", "rl", "--from", str(toy()), "--prompts", str(prompts), "-o", str(tmp_path / "run")]
    for more, told in (
        (["--reward", "edit=much"], "NAME=WEIGHT"), (["--reward", "edti"], "Did you mean 'edit'"),
        ([], "at least 1"), (["--reward", "edit", "--estimator", "tragectory"], "Did you mean 'trajectory'"),
    ):  # fmt: skip
        assert run([*start, *more]) != 0
        err = capsys.readouterr().err
        assert told in err and len(err.strip().splitlines()) < 12
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["coupled-rl", "consistency-rl", "diffu-rl", "emoji-rl"])
def test_recipes_that_ship_are_recipes_of_it(name: str) -> None:
    from cm3kit.config import resolve
    from cm3kit.training.run import read_yaml, recipe_path, recipes

    assert kind_of([Path(name)]) == "rl"
    shape, base = recipes["rl"]()
    made: Any = resolve(shape, [base, read_yaml(recipe_path(Path(name)))])
    assert isinstance(made, RLRecipe) and made.estimator.name in ("coupled", "trajectory", "one-pass")


@pytest.mark.parametrize("rank", [0, 4])
def test_what_it_needs_is_told_before(tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: int) -> None:
    model = public_folders.write("dream", tmp_path)
    (tmp_path / "p.txt").write_text("1 2 3 = 6")
    args = [
        "estimate",
        "rl",
        "-c",
        "coupled-rl",
        "--set",
        f"model={model}",
        "--set",
        f"prompts={tmp_path / 'p.txt'}",
    ]
    args += [
        "--set",
        f"lora.rank={rank}",
        "--set",
        "loss.sync_every=0",
        "--set",
        "sampling.length=8",
        "--json",
    ]
    assert run(args) == 0
    told = json.loads(capsys.readouterr().out)["data"]
    parts = load(model)
    alone = sum(each.numel() for each in parts.backbone.parameters())
    assert told["weights"] >= 4 * alone and told["activations"] > 0 and told["peak"] > told["process"]
    if rank:
        assert 0 < told["trained"] == told["parameters"] - alone < alone
    else:
        assert told["trained"] == told["parameters"] == alone and told["moments"] == 8 * alone
