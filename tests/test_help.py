"""Help that a person reads: panels, whole sentences, an example on every command that parses."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from cm3kit_cli.help import EXAMPLES, readable
from cm3kit_cli.main import app, run


def commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


ALL = dict(commands())


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_an_example_that_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Parsed whole, by the command itself: a flag that is gone fails here."""
    assert run([*name.split(), "--help"]) == 0
    (example,) = re.findall(r"Example: cm3kit (.+)", capsys.readouterr().out)
    given = shlex.split(example)
    words = name.split()
    assert given[: len(words)] == words
    command = ALL[name]
    context = command.make_context(name, given[len(words) :])
    assert context.params


def test_examples_are_of_commands() -> None:
    assert set(EXAMPLES) <= set(ALL)


def test_panels_stand_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("generate", "infill", "sample run"):
        run([*name.split(), "--help"])
        shown = capsys.readouterr().out
        places = [
            shown.index(f"\n{panel}:") for panel in ("Input", "Sampling", "Diffusion decoder", "Output")
        ]
        assert places == sorted(places)
        assert "<str>" not in shown and "<path>" not in shown and "int range" not in shown


def test_lists_of_commands_cut_no_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ([], ["data"], ["model"], ["show"], ["sample"]):
        run([*name, "--help"])
        assert "..." not in capsys.readouterr().out.replace("[ARGS]...", "")


def test_help_is_as_wide_as_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cm3kit_cli.help import with_panels

    widths = {}
    for columns in ("80", "118"):
        monkeypatch.setenv("COLUMNS", columns)
        with_panels(app)
        run(["generate", "--help"])
        widths[columns] = max(map(len, capsys.readouterr().out.splitlines()))
    assert widths["80"] <= 80 < widths["118"] <= 118


def test_flags_read_as_words() -> None:
    assert readable(("--seed <int range>", "Seed.  [0<=x<=9223372036854775807]")) == (
        "--seed N",
        "Seed.  [at least 0]",
    )
