"""The options of decoding are written once, and hold at every door."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toys import toy

import cm3kit
from cm3kit import GenerateOptions
from cm3kit.batch.rows import read_rows
from cm3kit.decode_options import markdown, own, table
from cm3kit.fill.kit import Kit
from cm3kit.provenance.reproducing import options_of
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ConfigError

ROOT = Path(__file__).parents[1]
OUTSIDE: list[tuple[str, float]] = [
    (name, bound + step)
    for name, option in table().items()
    for bound, step in ((option.opt.least, -1), (option.opt.most, 1))
    if bound is not None
]


@pytest.fixture(scope="module")
def kit() -> Kit:
    return cm3kit.load(toy(), device="cpu")


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_bounds_hold_at_every_door(
    kit: Kit, name: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = table()[name]
    decoder = {"decoder": option.opt.decoder} if option.opt.decoder else {}
    given: dict[str, Any] = {name: value, **decoder}
    with pytest.raises(ConfigError, match=name) as caught:
        kit.generate("red apple", options=GenerateOptions(**given))
    assert caught.value.code == "bad_value" and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=name):  # HTTP bodies and recipes
        options_of(given)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "x", **given}))
    (row,) = read_rows(tmp_path / "rows.jsonl").rows
    assert row.error is not None and name in str(row.error)
    flags = [each for key, each in given.items() for each in (table()[key].flag, str(each))]
    assert run(["generate", "x", "--model", str(toy()), *flags]) == 2
    assert option.flag in capsys.readouterr().err


def test_words_are_those_of_the_table(kit: Kit) -> None:
    for name in ("precision", "decoder", "cache"):
        with pytest.raises(ConfigError, match=f"option {name} is 'x'; give one of {table()[name].words[0]}"):
            kit.generate("red apple", options=GenerateOptions(**{name: "x"}))
    with pytest.raises(ConfigError, match="temperature is nan"):
        kit.generate("red apple", options=GenerateOptions(temperature=float("nan")))
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        options_of({"temprature": 1})


def test_the_reference_has_the_table() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    assert text.split("<!-- options -->\n")[1] == markdown(), (
        "write what cm3kit.decode_options.markdown() gives"
    )


def test_whose_options_are_whose() -> None:
    assert {*own("cm3")} == {"compile", "draft", "parallel"} and "sampler" in {*own("diffusion")}
    assert {table()[name].opt.panel for name in own("diffusion")} == {"Diffusion decoder"}


def test_options_are_imported_without_torch() -> None:
    code = "import sys, cm3kit; cm3kit.GenerateOptions(steps=3); sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(str(ROOT / each) for each in (".", "cli", "tokenizers"))}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_what_a_decoder_or_a_machine_has_not_is_refused(kit: Kit) -> None:
    page = cm3kit.Page.parse(b"<p>a <mask></p>")
    for wrong, told in (
        (GenerateOptions(decoder="diffusion", precision="bf16-fp16"), "is of the cm3 decoder"),
        (GenerateOptions(compile="on"), "on a GPU; this is 'llama' on cpu"),
    ):
        with pytest.raises(ConfigError, match=told):
            kit.infill(page, options=wrong)
