"""`benchmarks/gpu.py` on the CPU: its settings run in tiny sizes, and what fails costs only itself."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
BAD = """
import os, time
def fine(where, value): return {"value": value}
def raises(where): raise ValueError("told so")
def dies(where): os.kill(os.getpid(), 9)
def hangs(where): time.sleep(600)
"""


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the worker finds what a test has written."""
    (tmp_path / "gpu_bad.py").write_text(BAD)
    own = [str(tmp_path), str(ROOT), str(ROOT / "cli"), str(ROOT / "tokenizers")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*own, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return tmp_path


@pytest.mark.slow
def test_what_fails_costs_only_itself(paths: Path) -> None:
    gpu: Any = importlib.import_module("gpu")
    unit: Any = importlib.import_module("gpu_units").Unit
    asked = [
        unit("a", "fine", "gpu_bad:fine", {"value": 1}),
        unit("a", "raises", "gpu_bad:raises"),
        unit("a", "hangs", "gpu_bad:hangs", limit=1.0),
        unit("a", "dies", "gpu_bad:dies"),
        unit("a", "needs", "gpu_bad:fine", cuda=True),
        unit("a", "fine again", "gpu_bad:fine", {"value": 2}),
    ]
    book = gpu.measure(paths / "out", asked, budget=300, lanes=1, tiny=True)
    found = json.loads((paths / "out" / "results.json").read_text())["results"]
    assert found == book.found and list(found) == [each.key for each in asked]
    assert found["a/fine"]["found"] == {"value": 1} and found["a/fine again"]["found"] == {"value": 2}
    assert found["a/raises"]["failed"][-1] == "ValueError: told so"
    assert found["a/hangs"]["failed"] == ["no answer after its limit of 1 s"]
    assert found["a/dies"]["failed"][0] == "its process ended with -9"
    assert found["a/needs"]["skipped"] == "needs a GPU"
    told = gpu.table(book)
    assert "failed: 3 of 6: a/raises; a/hangs; a/dies" in told and "skipped: 1 of 6: a/needs" in told


def test_a_budget_that_is_spent_skips_and_says_so(paths: Path) -> None:
    gpu: Any = importlib.import_module("gpu")
    units: Any = importlib.import_module("gpu_units")
    asked = units.units(units.PARTS, False)
    assert len({each.key for each in asked}) == len(asked)
    book = gpu.measure(paths / "out", asked, budget=0, lanes=2, tiny=False)
    assert {each["skipped"] for each in book.found.values()} == {"the time is over"}
    assert f"skipped: {len(asked)} of {len(asked)}" in gpu.table(book)


@pytest.mark.slow
def test_settings_run_in_tiny_sizes(paths: Path) -> None:
    parts = "ceilings,training,pictures,diffusion"
    out = paths / "out"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "-o", str(out), "--parts", parts]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads((out / "results.json").read_text())
    assert told["machine"]["device"] == "CPU"
    results = told["results"]
    assert [key for key, each in results.items() if "skipped" in each] == [
        "training/causal-blocks, flex, 2 rows"
    ]
    assert not [key for key, each in results.items() if "failed" in each]
    step = results["training/causal-blocks, dense, 3 rows, compiled"]["found"]
    assert step["graphs"] >= 1 and step["breaks"] == 0 and step["tokens/s"] > 0
    assert results["training/cm3, documents, 2 rows"]["found"]["mask"] == "Documents"
    whole = results["training/whole loop, causal-blocks, auto"]["found"]
    assert len(whole["losses"]) == 4 and "final/model.safetensors" in whole["files"]
    assert "FAILED" not in ran.stdout and (out / "table.md").read_text() in ran.stdout
