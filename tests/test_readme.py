"""Every command of the README is run as it stands, in a folder that looks like a checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from sites import TINY, make_pages

from cm3kit_cli.main import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
COMMANDS = [
    line.split(" #")[0].split("   ")[0].strip()
    for kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if line.strip()
]  # fmt: skip
USES = [line for line in COMMANDS if line.startswith("cm3kit ") and " train " not in line]
TRAINS = [line for line in COMMANDS if line.startswith("cm3kit train ")]
MAKES = [line for line in COMMANDS if line.startswith("make ")]

shipped = pytest.mark.skipif(
    not (ROOT / "checkpoints/pictures/model_index.json").is_file(),
    reason="checkpoints/pictures is not in this checkout",
)


def words(line: str) -> list[str]:
    import shlex

    return shlex.split(line)[1:]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_has_commands_of_each_kind() -> None:
    assert len(USES) >= 6 and len(TRAINS) == 4 and {"make demo", "make test"} <= set(MAKES)
    others = [line for line in COMMANDS if line not in USES + TRAINS + MAKES]
    assert all(line.startswith(("pip install", ". .venv/bin/activate")) for line in others)


@shipped
@pytest.mark.parametrize("line", USES)
def test_a_command_that_uses_the_model_works(
    line: str, checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(words(line)) == 0
    out, err = capfd.readouterr()
    out = out.strip()
    assert (
        out and "are equal" not in err and "warning: outputs" not in err
    )  # examples show what there is to see
    if not any(each in line for each in ("--task caption", "doctor", "cm3kit score")):
        assert all(Path(path).stat().st_size > 100 for path in out.splitlines())


@shipped
def test_the_training_commands_work(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = checkout / "data/emoji"
    (data / "pictures").mkdir(parents=True)
    for number, colour in enumerate(("red", "green", "blue", "yellow")):
        Image.new("RGB", (64, 64), colour).save(data / f"pictures/{colour}.png")
        page = f'<h1>{colour} square</h1><p><img alt="{colour} square" src="pictures/{colour}.png"></p>\n'
        (data / f"{number}.html").write_text(page * 3)
    for line in TRAINS[1:]:
        kind = line.split()[2]
        extra = (
            [] if kind == "text" else ["--max-steps", "1", "--set", "loop.batch_size=2", "--device", "cpu"]
        )
        extra += ["--set", "loop.compile=false"] if kind == "cm3" else []
        assert run([*words(line), *extra]) == 0, capfd.readouterr().err
        if kind == "vqgan":  # one step makes no result; the next command needs one
            shutil.copytree(ROOT / "checkpoints/pictures/image", checkout / "runs/vqgan/final")
    assert list((checkout / "runs/cm3").glob("step-*"))


def test_a_model_of_a_site_is_made_in_one_command(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_pages(checkout / "site")
    flags = [part for each in TINY for part in ("--set", each)]
    line = TRAINS[0].replace("--budget 1h", "--preset tiny")
    assert run([*words(line), *flags, "--device", "cpu"]) == 0
    assert capfd.readouterr().out == "my-model\n" and Path("my-model/report.html").is_file()
    assert run(["model", "info", "my-model"]) == 0


@pytest.mark.parametrize("line", MAKES)
def test_make_knows_the_target(line: str) -> None:
    done = subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@shipped
def test_the_python_of_the_readme_runs(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "README.md", "exec"), {})
    assert (checkout / "apple.png").is_file()
    assert 'src="data:image/png;base64,' in capsys.readouterr().out


def test_every_file_that_the_readme_points_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        if not link.startswith("checkpoints/pictures") or (ROOT / "checkpoints/pictures").is_dir():
            assert (ROOT / link).exists(), link
