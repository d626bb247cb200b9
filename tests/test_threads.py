"""Threads of commands leave the processor to others while they wait, unless the user has said how they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cm3kit_cli.start import SPINS, share_processors

# Runs a command to its end, and prints what OpenMP had been told when torch was loaded.
SCRIPT = """
import os, sys
seen = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            seen.append(os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, Watch())
from cm3kit_cli.start import run
sys.argv = ["cm3kit", "generate", "a red apple", "-o", sys.argv[1]]
print(run(), file=sys.stderr)
print("told", seen[0], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, str(SPINS)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_wait_shortly_unless_told_how(given: dict[str, str], expected: str | None) -> None:
    """What the user has set stands, whichever of the two variables it is."""
    environment = {"HOME": "/nowhere", **given}
    share_processors(environment)
    assert environment.pop("GOMP_SPINCOUNT", None) == expected
    assert environment.items() <= {"HOME": "/nowhere", **given}.items()


def test_a_command_says_so_before_torch_is_loaded(tmp_path: Path) -> None:
    """libgomp reads its settings once, when it is loaded; later ones would do nothing."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "apple.png")],
        capture_output=True,
        text=True,
        timeout=120,
        env=_plain(),
    )
    assert f"told {SPINS}" in done.stderr.splitlines(), done.stderr


def _plain() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
