"""Scripts of samples/: every one of them is run by some test, and does what its first line says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"


def test_every_script_is_run_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    scripts = [path.name for path in SAMPLES.iterdir() if path.suffix in (".py", ".sh")]
    pattern = {name for name in ("prepare_datatrove.py", "prepare_ray.py") if "prepare_{" in tests}
    assert scripts and not [name for name in scripts if name not in tests and name not in pattern]
    plugins = [path.stem for path in (SAMPLES / "plugins").glob("*.py")]
    assert len(plugins) >= 12 and 'glob("*.py")' in (ROOT / "tests/test_plugins.py").read_text(
        encoding="utf-8"
    )


@pytest.mark.skipif(
    not (ROOT / "checkpoints/pictures/model_index.json").is_file(), reason="no checkpoints/pictures"
)
def test_batch_draws_every_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red apple\nblue heart\n")
    runpy.run_path(str(SAMPLES / "batch.py"))["main"](prompts, tmp_path / "out", n=2)
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["000-0.png", "000-1.png", "001-0.png", "001-1.png", "grid.png"]
    with Image.open(tmp_path / "out/grid.png") as sheet:
        assert sheet.width > 2 * 64 and capsys.readouterr().out.strip().endswith("grid.png")
    assert re.search(rb"red apple", (tmp_path / "out/000-0.png").read_bytes())
