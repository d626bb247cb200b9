"""Settings from recipes, files and the command line; and random streams."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from cm3kit.config import Settings, dump, read_yaml, resolve
from cm3kit.rng import generator, stream
from cm3kit_tokenizers.errors import ConfigError


class Inner(Settings):
    width: int = Field(4, ge=1)
    rate: float = 1e-3
    names: tuple[str, ...] = ()


class Outer(Settings):
    inner: Inner = Inner()
    steps: int = 10
    path: Path = Path("a")
    note: str | None = None

    @model_validator(mode="after")
    def _even(self) -> Outer:
        if self.steps % 2:
            raise ValueError("steps must be even")
        return self


def test_later_sources_win_and_overrides_win_over_all() -> None:
    recipe = {"inner": {"width": 5, "rate": 0.5}, "steps": 20}
    config = {"inner": {"width": 6}}
    assert resolve(Outer, []) == Outer()
    assert resolve(Outer, [recipe]).inner == Inner(width=5, rate=0.5)
    assert resolve(Outer, [recipe, config]).inner == Inner(width=6, rate=0.5)
    assert resolve(Outer, [config, recipe]).inner.width == 5
    found = resolve(Outer, [recipe, config], ["inner.width=7", "steps=2", "inner.width=8"])
    assert (found.inner.width, found.inner.rate, found.steps) == (8, 0.5, 2)


def test_sources_are_not_changed() -> None:
    sources: list[dict[str, Any]] = [{"inner": {"width": 5}}, {"inner": {"rate": 0.5}}, {"note": "x"}]
    before = repr(sources)
    resolve(Outer, sources, ["inner.width=9"])
    assert repr(sources) == before
    deep: list[dict[str, Any]] = [{"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}]
    with pytest.raises(ConfigError):
        resolve(Outer, deep)
    assert deep[0] == {"a": {"b": {"c": 1}}}


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("steps=12", 12), ("note=12 = 3", "12 = 3"), ("note=null", None), ("note=", None), ("note='7'", "7"),
        ("inner.rate=1e-4", 1e-4), ("inner.names=[a, b]", ("a", "b")), ("inner={width: 2}", Inner(width=2)),
        ("path=runs/x.y", Path("runs/x.y")),
    ],
)  # fmt: skip
def test_set_takes_yaml_values(override: str, found: object) -> None:
    settings = resolve(Outer, [{"note": "before"}], [override])
    value: Any = settings
    for name in override.partition("=")[0].split("."):
        value = getattr(value, name)
    assert value == found


def refused(sources: list[dict[str, Any]], overrides: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(Outer, sources, overrides)
    assert caught.value.code == "bad_config"
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    return str(caught.value)


def test_an_unknown_key_is_refused_with_the_nearest_name() -> None:
    assert "stepz is unknown; did you mean steps?" in refused([{"stepz": 3}], [])
    assert "inner.widht is unknown; did you mean width?" in refused([{"inner": {"widht": 3}}], [])
    assert "inner.widht is unknown; did you mean width?" in refused([], ["inner.widht=3"])
    assert "zzzzzz is unknown" in refused([], ["zzzzzz=3"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps", "a.b=c"), ("=3", "a.b=c"), ("", "a.b=c"), ("steps=[", "not usable YAML"),
        ("steps=x", "steps = 'x'"), ("steps.more=3", "steps"), ("inner.width=0", "inner.width = 0"),
        ("inner.width=2.5", "2.5"), ("note=2024-13-45", "not usable YAML"), ("note=&a [*a]", "not usable YAML"),
        ("note=!!python/object/apply:os.system ['true']", "not usable YAML"), ("steps=3", "steps must be even"),
        ("inner=" + "x" * 500, "inner = "), ("..=1", "unknown"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_in_one_line(override: str, said: str) -> None:
    assert said in refused([], [override])


def test_a_group_is_not_reached_through_a_value() -> None:
    assert "'steps' is not a group" in refused([{"steps": 3}], ["steps.more=3"])


@pytest.mark.parametrize(
    "text",
    [
        "a: [", "- a", "3", "", "a: &x [1]\nb: *x", "a: !!python/object/apply:os.getcwd []",
        "a: !!python/name:os.system", "a: 2024-13-45", "a: \x00", "[" * 99, "a: " + "9" * 5000,
    ],
)  # fmt: skip
def test_yaml_that_is_no_plain_mapping_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml") as caught:
        read_yaml(path)
    assert caught.value.code == "bad_config" and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            read_yaml(path)
        assert caught.value.code == "no_file"
    (tmp_path / "latin.yaml").write_bytes(b"note: \xff")
    with pytest.raises(ConfigError, match="not usable YAML"):
        read_yaml(tmp_path / "latin.yaml")


@given(st.integers(1, 99), st.floats(1e-6, 1), st.lists(st.text(max_size=5), max_size=3))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_what_is_dumped_reads_back_as_the_same(width: int, rate: float, names: list[str]) -> None:
    import yaml

    made = Outer(inner=Inner(width=width, rate=rate, names=tuple(names)), path=Path("b/c"))
    assert resolve(Outer, [yaml.safe_load(dump(made))]) == made


def test_streams_are_splitmix64() -> None:
    # The first outputs of splitmix64 from the states 0 and 1234567, without the sign bit.
    assert stream(0) == 0xE220A8397B1DCDAF & 2**63 - 1
    assert stream(1234567) == 6457827717110365317
    assert stream() == 0


def test_streams_tell_parts_and_their_order_apart() -> None:
    parts = [each for size in (1, 2, 3) for each in itertools.product((0, 1, 2, -1, 2**63), repeat=size)]
    found = [stream(*each) for each in parts]
    assert len(set(found)) == len(parts) and all(0 <= each < 2**63 for each in found)
    assert generator(3, 4).initial_seed() == stream(3, 4)
