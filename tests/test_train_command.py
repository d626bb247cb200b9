"""`cm3kit config show`, and how `cm3kit train` stops and starts processes."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cm3kit import training
from cm3kit.config import Settings, read_yaml, resolve, trace
from cm3kit.training.precision import processes, rank, started_alone
from cm3kit.training.run import kind_of, recipe_path, recipes, shipped_recipes, traced
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ConfigError

Capture = pytest.CaptureFixture[str]


class Inner(Settings):
    depth: int = 1
    widths: tuple[int, ...] = (1, 2)


class Outer(Settings):
    name: str = "x"
    other: str | None = None
    inner: Inner = Inner()


def test_each_value_is_traced_to_the_last_that_set_it() -> None:
    sources: list[tuple[str, dict[str, Any]]] = [
        ("a.yaml", {"name": "a", "inner": {"depth": 2}}), ("b.yaml", {"inner": {"depth": 3, "widths": [4]}})
    ]  # fmt: skip
    found = trace(Outer, sources, ["inner.depth=7", "other=null"])
    assert found.values == {
        "name": ("a", "a.yaml"), "other": (None, "--set"), "inner.depth": (7, "--set"),
        "inner.widths": ([4], "b.yaml"),
    }  # fmt: skip
    assert trace(Outer, []).values["inner.widths"] == ([1, 2], "default")
    assert trace(Outer, [("c", {"inner": {}})]).values["inner.depth"] == (1, "c")
    text = found.as_yaml()
    assert yaml.safe_load(text) == {"name": "a", "other": None, "inner": {"depth": 7, "widths": [4]}}
    assert "inner:\n" in text and [line.split("  # ")[1] for line in text.splitlines() if "#" in line] == [
        "a.yaml", "--set", "--set", "b.yaml",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="did you mean depth"):
        trace(Outer, sources, ["inner.dept=1"])


def test_recipes_that_ship_are_shown_as_they_are_resolved() -> None:
    assert len(shipped_recipes()) > 3
    for path in shipped_recipes():
        shape, base = recipes[kind_of([Path(path.stem)])]()
        shown = yaml.safe_load(traced([Path(path.stem)]).as_yaml())
        assert resolve(shape, [shown]) == resolve(shape, [base, read_yaml(recipe_path(Path(path.stem)))])


def test_config_show_prints_yaml_with_origins(tmp_path: Path, capsys: Capture) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("codebook: {start: 9}\n")
    assert run(["config", "show", str(mine), "--set", "loop.steps=5"]) == 0
    out = capsys.readouterr().out
    origins = {
        line.split("#")[0].strip(): line.split("#")[1].strip() for line in out.splitlines() if "#" in line
    }
    assert origins["start: 9"] == str(mine) and origins["steps: 5"] == "--set"
    assert origins["keep: 2"] == "default"
    assert yaml.safe_load(out)["loop"]["steps"] == 5
    assert run(["config", "show", str(mine), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["codebook.start"] == {"value": 9, "origin": str(mine)}
    (tmp_path / "loop.yaml").write_text("data: x\n")
    assert run(["config", "show", str(tmp_path / "loop.yaml")]) == 1
    assert "--kind" in capsys.readouterr().err
    assert run(["config", "show", str(tmp_path / "loop.yaml"), "--kind", "mdm"]) == 0
    assert "name: masked-diffusion" in capsys.readouterr().out


def test_a_run_that_was_stopped_and_saved_says_run_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def stopped(*args: Any, **rest: Any) -> Path:
        raise training.Paused("stopped after step 7 of 9, which is saved")

    monkeypatch.setattr(training, "run", stopped)
    assert run(["train", "cm3", "-o", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err == "stopped after step 7 of 9, which is saved; the same command resumes from there\n"
    )
    assert run(["train", "cm3", "-o", str(tmp_path), "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and answer["data"]["folder"] == str(tmp_path)
    # Of several processes the main one speaks.
    monkeypatch.setenv("RANK", "1")
    assert run(["train", "cm3", "-o", str(tmp_path), "--json"]) == 3
    assert capsys.readouterr() == ("", "")


def test_several_processes_run_the_same_command(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    started: list[tuple[list[str], int]] = []

    def launch(command: list[str], processes: int) -> int:
        started.append((command, processes))
        return 3

    monkeypatch.setattr("cm3kit.training.launch.launch", launch)
    given = [
        "-c",
        "emoji-mdm",
        "--set",
        "loop.steps=4",
        "-o",
        "x",
        "--max-steps",
        "2",
        "--device",
        "cpu",
        "-q",
    ]
    assert run(["train", "mdm", *given, "--num-processes", "2"]) == 3
    command, processes = started[0]
    assert processes == 2 and command[:5] == [sys.executable, "-m", "cm3kit_cli", "train", "mdm"]
    assert "--num-processes" not in command
    pairs = list(itertools.pairwise(command))
    assert all(pair in pairs for pair in zip(given[:-1:2], given[1:-1:2], strict=True)) and "-q" in command
    assert run(["train", "text", "--num-processes", "2"]) == 2
    assert "one process" in capsys.readouterr().err


def launched(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    """The environment that `accelerate launch` gives to what it starts."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

    given = [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--num_processes",
        "2",
    ]
    args = launch_command_parser().parse_args([*given, *flags, "-m", "cm3kit_cli"])
    args = _validate_launch_command(args)[0]
    found = prepare_simple_launcher_cmd_env(args)[1] if args.cpu else prepare_multi_gpu_env(args)
    for name in found.keys() - os.environ.keys():
        monkeypatch.setenv(name, found[name])


@pytest.mark.parametrize("flag", ["--use_fsdp", "--use_megatron_lm"])
def test_accelerate_is_not_left_to_spread_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path, flag: str
) -> None:
    launched(monkeypatch, flag)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["train", "cm3", "-o", str(tmp_path / "run"), "-q"]) == 1
    name = flag.removeprefix("--use_").upper()
    assert capsys.readouterr().err == (
        f"cm3kit train cm3: accelerate is configured for {name}, which this loop does not use; launch with --multi_gpu"
        " instead, and set loop.shard=true to spread the model over the processes (FSDP2). [bad_config]\n"
    )


def test_one_process_where_several_were_asked_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_alone() is None
    with monkeypatch.context() as patch:
        launched(patch, "--cpu")
        heard: list[str] = []
        with pytest.raises(ConfigError):  # a recipe that is not there comes after
            training.run("cm3", [Path("nowhere")], warn=heard.append)
        assert len(heard) == 1 and "has started one process" in heard[0] and "--multi_gpu" in heard[0]
        patch.setenv("OMPI_COMM_WORLD_SIZE", "2")
        patch.setenv("OMPI_COMM_WORLD_RANK", "1")
        assert started_alone() is None and (processes(), rank()) == (2, 1)
        patch.setattr("torch.cuda.is_available", lambda: True)  # accelerate reads these for CPUs alone
        assert (processes(), rank()) == (1, 0)
        patch.setenv("WORLD_SIZE", "4")
        assert processes() == 4
    launched(monkeypatch, "--multi_gpu")
    assert started_alone() is None
