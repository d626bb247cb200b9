"""Folders of public models that are not what they say: each is refused in one line, before anything large is made."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import chameleon_folder
import public_folders
import pytest
import transformers
from safetensors.torch import load_file, save_file

from cm3kit.models.backbone import load_backbone
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ModelError


def folder_of(name: str, at: Path, **changes: Any) -> Path:
    folder = chameleon_folder.write(at) if name == "anole" else public_folders.write(name, at)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))
    return folder


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert run(command) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "[internal]" not in said, said
    return said


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llada", {"mask_token_id": -1}, "mask_token_id = -1 is no whole number"),
        ("llada", {"mask_token_id": "x"}, "mask_token_id = 'x' is no whole number"),
        ("dream", {"mask_token_id": [1]}, "is no whole number"),
        ("dream", {"mask_token_id": 3.5}, "is no whole number"),
        ("diffucoder", {"mask_token_id": True}, "is no whole number"),
        ("llada", {"mask_token_id": 10**9}, "names id 1,000,000,000, and the embedding has 384 rows"),
        ("llada", {"n_heads": 0}, "n_heads = 0 is no whole number from 1 up"),
        ("llada", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ("llada", {"architectures": ["LLaDAMoEModelLM"]}, "class LLaDAMoEModelLM is another model"),
        ("dream", {"architectures": "Other"}, "class Other is another model"),
        ("anole", {"architectures": ["ChameleonXLLMXForConditionalGeneration"]}, "is another model"),
        ("anole", {"hidden_size": None}, "hidden_size is missing"),
    ],
)
def test_what_a_configuration_cannot_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, changes: dict[str, Any], said: str
) -> None:
    folder = folder_of(name, tmp_path, **changes)
    assert said in refused(["model", "import", str(folder), "-o", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llada", {"n_layers": 10**9}),
        ("llada", {"mlp_hidden_size": 10**8}),
        ("dream", {"num_hidden_layers": 10**9}),
        ("anole", {"num_hidden_layers": 10**9}),
        ("llada", {"rms_norm_eps": "x"}),
        ("dream", {"rms_norm_eps": None}),
    ],
)
def test_nothing_of_a_size_that_the_files_do_not_have_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, changes: dict[str, Any]
) -> None:
    folder = str(folder_of(name, tmp_path, **changes))
    for command in (["model", "import", folder, "-o", str(tmp_path / "out")], ["estimate", "-m", folder]):
        assert "config.json" in refused(command, capsys)


def test_a_tokenizer_that_is_not_there_is_not_made_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, files in (("llada", ["tokenizer.json"]), ("dream", ["merges.txt"])):
        folder = folder_of(name, tmp_path / name)
        for file in files:
            (folder / file).unlink()
        command = ["model", "import", str(folder), "-o", str(tmp_path / "out")]
        assert "has no tokenizer that can be read" in refused(command, capsys)


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of("llada", tmp_path, vocab_size=200, embedding_size=200, pad_token_id=1, mask_token_id=5)
    for path in folder.glob("*.safetensors"):
        tensors = {
            name: each[:200].clone() if len(each) == public_folders.ROWS else each
            for name, each in load_file(path).items()
        }
        save_file(tensors, path, metadata={"format": "pt"})
    command = ["model", "import", str(folder), "-o", str(tmp_path / "out")]
    assert "the embedding has 200 rows; the files are of different models" in refused(command, capsys)


def test_a_folder_that_is_not_there_is_no_name_of_a_hub(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "absent")
    command = ["train", "cm3", "--backbone", absent, "-o", str(tmp_path / "run")]
    assert f"there is no file or folder {absent}." in refused(command, capsys)
    with pytest.raises(ModelError, match="there is no file or folder"):
        load_backbone(absent, 0)


def test_a_file_of_weights_that_is_missing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("dream", tmp_path)
    # The one that holds the head, so that no tensor that is left is as large as the vocabulary.
    (folder / "model-00001-of-00002.safetensors").unlink()
    command = ["model", "import", str(folder), "-o", str(tmp_path / "out")]
    assert "lacks model-00001-of-00002.safetensors" in refused(command, capsys)
    assert run(["estimate", "-m", str(folder)]) == 0  # the configuration alone tells what it takes
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "names no files of weights" in refused(command, capsys)


def test_warnings_of_transformers_do_not_mix_with_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    folder, read = folder_of("llada", tmp_path), transformers.LlamaForCausalLM.from_pretrained

    def warned(*args: Any, **how: Any) -> Any:
        warnings.warn("an old format", UserWarning, stacklevel=2)
        return read(*args, **how)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", warned)
    load_backbone(folder, 0)
    assert not [each for each in recwarn if "an old format" in str(each.message)]


def test_a_model_that_is_code_of_its_folder_is_refused_and_the_code_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    folder = folder_of("llada", tmp_path, model_type="own", architectures=["OwnModel"], auto_map=own)
    for name in ("configuration_own", "modeling_own"):
        (folder / f"{name}.py").write_text("raise SystemExit('run')")
    train = ["train", "cm3", "--backbone", str(folder), "-o", str(tmp_path / "run")]
    for command in (["model", "info", str(folder)], ["estimate", "-m", str(folder)], train):
        said = refused(command, capsys)
        assert "holds 'own', which code in the folder computes" in said and "llada" in said
    with pytest.raises(ModelError, match="never run"):
        load_backbone(folder, 0)
