"""`cm3kit doctor` tells a sound installation from a broken one, and says what to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cm3kit import doctor
from cm3kit_cli.failures import explain
from cm3kit_cli.main import run

BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')"


def module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)


def told(check: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[doctor.Finding]:
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return list(getattr(doctor, check)(sys.executable))


def test_a_torchvision_that_cannot_be_imported_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, "torchvision", BROKEN)
    (found,) = told("_torchvision", monkeypatch, tmp_path)
    assert found.state == "problem" and "torchvision::nms does not exist" in found.detail
    assert "pip uninstall torchvision" in found.advice and "torchvision" not in sys.modules
    module(tmp_path, "torchvision", "x = 1")
    assert [each.state for each in told("_torchvision", monkeypatch, tmp_path)] == ["ok"]


def test_a_torchvision_that_is_not_there_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, "torchvision", "raise ModuleNotFoundError(\"No module named 'torchvision'\")")
    (found,) = told("_torchvision", monkeypatch, tmp_path)
    assert (found.state, found.detail) == ("ok", "not installed, and not needed")


def test_models_that_cannot_be_imported_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, "diffusers", f"VQModel = None\n{BROKEN}")
    (found,) = told("_network", monkeypatch, tmp_path)
    assert found.state == "problem" and "nms" in found.detail


def test_xformers_that_cannot_run_is_told_in_a_line_and_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    (found,) = told("_xformers", monkeypatch, tmp_path)
    assert found.state == "note" and "xformers" in found.advice
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name)
    folder = tmp_path / "cm3kit" / "models"
    folder.mkdir(parents=True)
    for place in (folder.parent, folder):
        module(place, "__init__", "")
    for text, state, said in (
        (
            "def why_no_xformers(device): return 'it has no kernel on cpu'",
            "note",
            "used: it has no kernel on cpu",
        ),
        ("def why_no_xformers(device): return None", "ok", "xformers runs"),
        (BROKEN, "note", "RuntimeError: operator"),
    ):
        module(folder, "documents", text)
        (found,) = told("_xformers", monkeypatch, tmp_path)
        assert found.state == state and said in found.detail and "\n" not in found.detail


def test_old_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.9.1+cpu", "transformers": "5.3.0rc1", "pillow": "12.10.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    found = {each.name: each for each in doctor._versions("")}
    assert [each.state for each in found.values()] == ["problem", "ok", "problem", "ok"]
    assert "older than 2.10" in found["torch"].detail and found["diffusers"].detail == "is not installed"
    assert doctor._numbers("2.13.0a1+cpu") == (2, 13)


@pytest.mark.parametrize("state, status", [("ok", 0), ("note", 0), ("problem", 1)])
def test_the_status_says_whether_there_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: str, status: int
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda python: [doctor.Finding("a", state, "b", "c")],))  # type: ignore[arg-type]
    assert run(["doctor"]) == status
    assert capsys.readouterr().out.split() == [state, "a:", "b", "c"]
    assert run(["doctor", "--json"]) == status
    told = json.loads(capsys.readouterr().out)
    data = told["data"]
    assert told["ok"] == (status == 0)
    assert data["problems"] == status and data["findings"][0]["name"] == "a"


def test_a_failure_through_torchvision_points_to_the_doctor() -> None:
    failure = explain(RuntimeError("operator torchvision::nms does not exist"), "generate")
    assert failure.code == "broken_package" and "cm3kit doctor" in failure.message
