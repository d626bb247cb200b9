"""Names, plug-in files and installed plug-ins."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from torch import Generator

from cm3kit import plugins
from cm3kit.plugins import load_file
from cm3kit.registry import Registry, span_law
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError

PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass
from cm3kit.registry import span_law
from cm3kit.types import Span

@dataclass(frozen=True, slots=True)
class Made:
    start: int = 0

@span_law("{name}")
def first(n, size, rng):
    return (Span(Made().start, 1),)
"""


def test_a_registry_is_a_sorted_mapping_of_names() -> None:
    colours: Registry[int] = Registry("colour")
    assert colours("red")(3) == 3 and colours("blue")(4) == 4
    assert list(colours) == ["blue", "red"] and len(colours) == 2
    assert colours["red"] == 3 and "red" in colours and "green" not in colours


def test_a_wrong_name_gets_the_nearest_one() -> None:
    colours: Registry[int] = Registry("colour")
    with pytest.raises(ConfigError, match="known: none"):
        colours["red"]
    colours("red")(3)
    colours("blue")(3)
    with pytest.raises(
        ConfigError, match=r"unknown colour 'rde'; known: blue, red\. Did you mean 'red'\?"
    ) as caught:
        colours["rde"]
    assert caught.value.code == "unknown_name" and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"known: blue, red\. \["):
        colours["xyzzy"]


def test_a_name_is_given_once() -> None:
    colours: Registry[int] = Registry("colour")
    colours("red")(3)
    with pytest.raises(ConfigError, match="already registered"):
        colours("red")(4)
    assert colours["red"] == 3


def test_a_plugin_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_law, "_items", dict(span_law._items))
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="test-first"))
    load_file(path)
    spans = span_law["test-first"](1, 9, Generator())
    assert spans is not None and (spans[0].start, spans[0].stop) == (0, 1)
    with pytest.raises(ConfigError, match="already registered"):
        load_file(path)
    assert not [name for name in sys.modules if name.startswith("cm3kit_plugin_mine")]
    for wrong in (tmp_path / "absent.py", tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(Cm3kitError, match="not a Python file"):
            load_file(wrong)


def test_installed_plugins_come_from_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_law, "_items", dict(span_law._items))
    (tmp_path / "cm3kit_installed_mine.py").write_text(PLUGIN.format(name="test-installed"))
    monkeypatch.syspath_prepend(tmp_path)

    def installed(group: str) -> list[EntryPoint]:
        return [EntryPoint("mine", "cm3kit_installed_mine", group)] if group == "cm3kit" else []

    monkeypatch.setattr(plugins, "entry_points", installed)
    monkeypatch.setattr(plugins, "_LOADED", set())
    for _ in range(2):
        plugins.load()
    assert "test-installed" in span_law
