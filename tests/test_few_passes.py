"""`benchmarks/few_passes.py` on tiny weights: names chosen, seconds kept, and a table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from toys import COLOURS, TRAINED, toy_model

from cm3kit.evaluation.judge import Judge

SCRIPT = Path(__file__).parents[1] / "benchmarks/few_passes.py"


def run(*given: str | Path) -> str:
    done = subprocess.run([sys.executable, SCRIPT, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_estimators_are_compared_at_equal_seconds(tmp_path: Path) -> None:
    model = toy_model(tmp_path / "parts", **TRAINED["causal-blocks"])
    (tmp_path / "pictures").mkdir()
    rows = [{"slug": each, "name": f"{each} square", "split": "train"} for each in COLOURS]
    rows.append({"slug": "red", "name": "held square", "split": "held"})
    (tmp_path / "entries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for each in COLOURS:
        Image.new("RGB", (64, 64), each).save(tmp_path / f"pictures/{each}.png")
    Judge([row["name"] for row in rows], ["somebody"]).eval().save(tmp_path / "judge")
    own = ["--data", tmp_path, "--judge", tmp_path / "judge"]
    run("names", *own, "--model", model, "--names", "4", "--most", "2", "-o", tmp_path / "names")
    asked, others = (
        (tmp_path / f"names/{each}.txt").read_text().split("\n")[:-1] for each in ("asked", "others")
    )
    assert len(asked) == len(others) == 2 and not {*asked} & {*others} and "held square" not in asked + others

    rewards = f"rewards=[{{name: judged, reference: {tmp_path}}}, {{name: variety, weight: 0.1}}]"
    tuned = tmp_path / "coupled"
    told = run("train", "--model", model, "--prompts", tmp_path / "names/asked.txt", "--estimator", "coupled",
               "--seconds", "0,1", "--set", rewards, "--set", "loop.batch_size=8", "--set", "group=4",
               "-o", tuned)  # fmt: skip
    steps = [json.loads(line) for line in told.splitlines()]
    assert (
        steps[-1]["cpu"] >= 1 > steps[-2]["cpu"] and steps[0]["passes"] == 4
    )  # two of each block of 8, of 16 codes
    name = "diffusion/model.safetensors" if (model / "diffusion").is_dir() else "decoder/model.safetensors"
    first, last = (load_file(tuned / at / name) for at in ("0", "1"))
    assert any(not first[each].equal(last[each]) for each in first)

    models = f"{model},{model},{tuned / '1'}"
    told = run("table", *own, "--asked", tmp_path / "names", "--models", models, "--samples", "2", "--only", "L/",
               "-o", tmp_path / "out")  # fmt: skip
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines()[2:]]
    assert len(lines) == 3 * 2 * 2 and {line[3] for line in lines} == {"2.0", "4.0"}
    assert all(line[9] == "+0.00 ± 0.00" for line in lines[:8])  # the same model, by the same random numbers
    assert len(list((tmp_path / "out").glob("*.png"))) == 2 * 2 * 2
