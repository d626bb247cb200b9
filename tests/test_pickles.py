"""A pickle is data or it is refused: nothing that is in it runs."""

from __future__ import annotations

import argparse
import collections
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm3kit.interop.conversion import convert
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import Cm3kitError, ModelError
from cm3kit_tokenizers.vq.pickles import Inert, read_pickle


class Runs:
    """Calls `function(*arguments)` when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def payloads(canary: Path) -> dict[str, Any]:
    touch = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Runs(os.system, f"touch {canary}"),
        "eval": Runs(eval, touch),
        "exec": Runs(exec, touch),
        "open": Runs(open, str(canary), "w"),
        "import": Runs(__import__, "os"),
        "getattr": Runs(getattr, "x", "upper"),
        "path": Runs(Path.touch, canary),
        "numpy": Runs(np.save, str(canary), 1),
        "torch": Runs(torch.hub.load_state_dict_from_url, "http://127.0.0.1:9/x"),
    }


NAMES = sorted(payloads(Path("x")))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_malicious_pickle_runs(tmp_path: Path, name: str, zipped: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "last.ckpt"
    held = {"state_dict": {"a": torch.ones(2)}, "callbacks": {"x": [payloads(canary)[name]]}}
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"refused.*nothing was run") as caught:
        read_pickle(path)
    assert caught.value.code == "bad_checkpoint" and "\n" not in str(caught.value)
    assert not canary.exists()


def test_the_payload_would_run_elsewhere(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "last.ckpt"
    torch.save({"x": Runs(os.system, f"touch {canary}")}, path)
    torch.load(path, weights_only=False)
    assert canary.exists()


def test_a_refused_file_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canary = tmp_path / "canary"
    torch.save({"x": Runs(os.system, f"touch {canary}")}, tmp_path / "last.ckpt")
    assert run(["model", "convert", str(tmp_path / "last.ckpt"), "-o", str(tmp_path / "made")]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and "posix.system" in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt"]


@pytest.fixture
def lightning() -> Iterator[dict[str, Any]]:
    """Classes of packages that are not installed, there only while files are written."""
    made: dict[str, Any] = {}
    names = {
        "pytorch_lightning.callbacks.model_checkpoint": ("ModelCheckpoint", object),
        "pytorch_lightning.utilities.parsing": ("AttributeDict", dict),
        "omegaconf.dictconfig": ("DictConfig", object),
    }
    for module, (name, base) in names.items():
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        made[name] = type(name, (base,), {"__module__": module})
        setattr(sys.modules[module], name, made[name])
    yield made
    for name in [each for each in sys.modules if each.startswith(("pytorch_lightning", "omegaconf"))]:
        del sys.modules[name]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_lightning_checkpoint_opens_without_lightning(
    tmp_path: Path, lightning: dict[str, Any], zipped: bool
) -> None:
    kept = lightning["AttributeDict"]()
    kept["lr"] = 0.5
    config = lightning["DictConfig"]()
    config.__dict__["_content"] = {"a": 1}
    counts: Any = collections.defaultdict(list)
    counts["a"].append(7)
    saved = {
        "epoch": 3, "callbacks": {lightning["ModelCheckpoint"]: {"best": np.float64(0.25)}}, "hyper": kept,
        "config": config, "args": argparse.Namespace(a=1), "counts": counts, "array": np.arange(3),
        "state_dict": collections.OrderedDict(a=torch.arange(4.0)),
    }  # fmt: skip
    torch.save(saved, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    for name in [each for each in sys.modules if each.startswith(("pytorch_lightning", "omegaconf"))]:
        del sys.modules[name]
    found = read_pickle(tmp_path / "last.ckpt")
    assert torch.equal(found["state_dict"]["a"], torch.arange(4.0)) and found["epoch"] == 3
    assert (
        found["hyper"]["lr"] == 0.5 and found["counts"]["a"] == [7] and found["array"].tolist() == [0, 1, 2]
    )
    assert [each["best"] for each in found["callbacks"].values()] == [0.25]
    assert isinstance(found["args"], Inert) and type(found["args"]) is not argparse.Namespace
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)


@pytest.mark.parametrize("text", [b"", b"PK\x03\x04nothing", b"\x80\x02]q", b"not a pickle at all" * 9])
def test_broken_files_are_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "last.ckpt").write_bytes(text)
    with pytest.raises(ModelError, match="refused") as caught:
        convert(tmp_path / "last.ckpt", tmp_path / "made")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch canary']", "a: &x [1]\nb: *x", "- 1", "{"]
)
def test_settings_are_plain_yaml(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "last.ckpt")
    (tmp_path / "last.yaml").write_text(text)
    with pytest.raises(Cm3kitError, match=r"last\.yaml") as caught:
        convert(tmp_path / "last.ckpt", tmp_path / "made")
    assert "\n" not in str(caught.value) and not (tmp_path / "canary").exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "a.ckpt", tmp_path / "folder"):
        with pytest.raises(ModelError, match="does not exist") as caught:
            convert(path, tmp_path / "made")
        assert caught.value.code == "no_file"
