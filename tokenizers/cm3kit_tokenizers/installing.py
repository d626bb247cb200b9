"""The pip command for extras, for an installed package or a checkout."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def install(extra: str) -> str:
    """The command that installs an extra: from the current checkout, else from the package index."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        return f"pip install 'cm3kit[{extra}]'"
    return f"pip install '{'.' if Path.cwd() == CHECKOUT else CHECKOUT}[{extra}]'"
