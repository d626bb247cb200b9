"""What is installed: locks that name every file, hints that work where cm3kit runs from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cm3kit_tokenizers import installing

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]


def names(requirements: list[str]) -> set[str]:
    """Packages of requirements."""
    return {re.split(r"[<>=\[;]", each)[0].strip().lower().replace("_", "-") for each in requirements}


def locked(name: str) -> dict[str, str]:
    """Packages of a lock with their versions; every one has a hash."""
    text = (ROOT / f"locks/{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            package, version = line.split()[0].split("==")
            assert re.findall(r"--hash=sha256:[0-9a-f]{64}", line), package
            found[package] = version
    return found


@pytest.mark.parametrize(("lock", "extra"), [("base", None), ("dev", "dev"), ("docs", "docs")])
def test_locks_hold_what_is_declared(lock: str, extra: str | None) -> None:
    wanted = names(PYPROJECT["project"]["dependencies"]) | names(EXTRAS[extra] if extra else [])
    assert wanted - {"torch"} <= set(locked(lock))


def test_locks_are_of_the_versions_that_are_tested() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    tested = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for lock in ("base", "dev", "docs"):
        for package, version in locked(lock).items():
            assert tested.get(package, version) == version, package


def test_all_is_of_extras_that_exist() -> None:
    (line,) = EXTRAS["all"]
    assert set(re.findall(r"\[(.+)\]", line)[0].split(",")) <= set(EXTRAS)


def test_a_hint_works_where_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert installing.install("serve") == "pip install '.[serve]'"
    monkeypatch.chdir(tmp_path)
    assert installing.install("serve") == f"pip install '{ROOT}[serve]'"
    monkeypatch.setattr(installing, "CHECKOUT", tmp_path)
    assert installing.install("serve") == "pip install 'cm3kit[serve]'"
