"""The notebook is run as it stands, with fewer steps, and was committed with what it printed."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks/own-pages.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    """Its cells of a kind."""
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [each for each in found if each["cell_type"] == kind]


@pytest.mark.skipif(
    not (ROOT / "checkpoints/pictures/model_index.json").is_file(), reason="no checkpoints/pictures"
)
def test_every_cell_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("CM3KIT_NOTEBOOK_STEPS", "6")
    names: dict[str, Any] = {}
    shown = []
    for number, cell in enumerate(cells("code")):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body[-1]
        if isinstance(last, ast.Expr):  # a notebook shows the value of the last line
            tree.body.pop()
            exec(compile(tree, f"cell {number}", "exec"), names)
            shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
        else:
            exec(compile(tree, f"cell {number}", "exec"), names)
    assert len(shown) == 2 and all(isinstance(each, Image.Image) for each in shown)
    assert (tmp_path / "notebooks/my-model/report.html").is_file()
    assert "90 kept" in capsys.readouterr().out


def test_it_was_committed_with_what_it_printed() -> None:
    told = [each["outputs"] for each in cells("code")]
    assert told[1] and told[2] and not told[0]
    pictures = [each for outputs in told[3:] for each in outputs if "image/png" in each.get("data", {})]
    assert len(pictures) == 2
    assert not [each for outputs in told for each in outputs if each["output_type"] == "error"]
