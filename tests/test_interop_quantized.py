"""Public models in few bits: what is computed is what the kept weights say; what cannot be had is said in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chameleon_folder
import public_folders
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import cm3kit
from cm3kit.fill.kit import GenerateOptions
from cm3kit.models import quantized
from cm3kit.models.backbone import forward
from cm3kit.models.quantized import split_format
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ConfigError, ModelError
from cm3kit_tokenizers.page import Page

# What these packages warn of when they are imported is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


def dense(weight: Any) -> Tensor:
    """The numbers that a kept weight of torchao stands for."""
    made: Tensor = weight.dequantize()
    return made


def rounded(weight: Tensor) -> Tensor:
    """The numbers that NF4 keeps of a weight."""
    from bitsandbytes import functional

    kept: Tensor = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))
    return kept


def plain_copy(model: Any) -> Any:
    """The same network with these numbers in plain tensors."""
    config = type(model.config).from_dict(
        {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.random.fork_rng(devices=[]):
        made = type(model)(config).eval()
    for name, module in made.named_modules():
        theirs = model.get_submodule(name)
        for part in ("weight", "bias"):
            held = getattr(theirs, part, None)
            if isinstance(held, Tensor):
                kept = type(held) in (Tensor, nn.Parameter)
                module._parameters[part] = nn.Parameter((held if kept else dense(held)).detach().float())
    return made


# The others' tiny layers are smaller than a block of NF4.
@pytest.mark.parametrize(
    ("name", "wanted"), [("llada", "int8"), ("dream", "int8"), ("anole", "int8"), ("anole", "nf4")]
)
def test_what_is_computed_is_what_the_kept_weights_say(tmp_path: Path, name: str, wanted: str) -> None:
    pytest.importorskip({"int8": "torchao", "nf4": "bitsandbytes"}[wanted])
    folder = chameleon_folder.write(tmp_path) if name == "anole" else public_folders.write(name, tmp_path)
    kit = cm3kit.load(f"{folder}:{wanted}", device="cpu")
    layer = kit.backbone.model.layers[0].mlp.down_proj.weight
    assert type(layer) not in (Tensor, nn.Parameter) and kit.parts.name == f"{folder.name}:{wanted}"
    assert type(kit.backbone.get_input_embeddings().weight) is nn.Parameter
    whole = dict(chameleon_folder.stock().named_parameters()) if wanted == "nf4" else {}
    layers = [
        (name, each)
        for name, each in kit.backbone.model.layers.named_modules()
        if isinstance(each, nn.Linear) and type(each.weight) not in (Tensor, nn.Parameter)
    ]
    assert len(layers) == 7 * len(kit.backbone.model.layers)
    for number, (at, each) in enumerate(layers):
        x_TD = torch.randn(5, each.in_features, generator=torch.Generator().manual_seed(number))
        kept = rounded(whole[f"model.layers.{at}.weight"].detach()) if whole else dense(each.weight)
        with torch.no_grad():
            found_TD, wanted_TD = each(x_TD), nn.functional.linear(x_TD, kept.float(), each.bias)
        # NF4's products are of 16 bits.
        most = 1e-5 if wanted == "int8" else 2e-2
        assert (found_TD - wanted_TD).abs().max() < most * wanted_TD.abs().max()
    if wanted == "int8":
        ids = torch.arange(60, 140)[None]
        with torch.no_grad():
            found_BTV, wanted_BTV = forward(kit.backbone, ids), forward(plain_copy(kit.backbone), ids)
        assert (found_BTV - wanted_BTV).abs().max() < 1e-3 * wanted_BTV.abs().max()
    options = GenerateOptions(max_tokens=8) if name == "anole" else GenerateOptions(length=6)
    assert kit.generate("a red apple", task="text", options=options)[0].text
    page = Page.parse(b"<p>A red <mask> and.</p>")
    (filled,) = kit.infill(page, options=options)
    assert filled.html.startswith(b"<p>A red ") and filled.html.endswith(b" and.</p>")
    if name == "anole":
        assert len(kit.generate("a red apple", task="image")[0].codes) == chameleon_folder.LENGTH


def test_an_imported_one_and_a_causal_one_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao")
    folder, made = public_folders.write("llada", tmp_path), tmp_path / "model"
    assert run(["model", "import", f"{folder}:int8", "-o", str(made)]) == 1
    assert "where it is used" in capsys.readouterr().err
    assert run(["model", "import", str(folder), "-o", str(made)]) == 0
    one, other = (cm3kit.load(f"{each}:int8", device="cpu") for each in (folder, made))
    texts = [
        each.generate("a red", task="text", options=GenerateOptions(length=6))[0].text
        for each in (one, other)
    ]
    assert texts[0] == texts[1]
    causal = tmp_path / "causal"
    one.backbone.config.quantization_config = None
    LlamaForCausalLM(plain_copy(one.backbone).config).save_pretrained(causal)
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).save_pretrained(causal)
    command = [
        "generate",
        "a red",
        "--task",
        "text",
        "-m",
        f"{causal}:int8",
        "--max-tokens",
        "4",
        "--device",
        "cpu",
    ]
    capsys.readouterr()
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]


def test_what_cannot_be_had_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = public_folders.write("dream", tmp_path)
    assert split_format("a:int8") == ("a", "int8") and split_format("C:\\a") == ("C:\\a", None)
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    for wanted, package in quantized.PACKAGES.items():
        with pytest.raises(ConfigError, match=rf"need {package}; pip install .*\[quantized\]") as caught:
            cm3kit.load(f"{folder}:{wanted}", device="cpu")
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(quantized, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="for GPUs alone"):
        cm3kit.load(f"{folder}:int4", device="cpu")
    with pytest.raises(ModelError, match="--precision"):
        cm3kit.load("emoji:int8", device="cpu")
    with pytest.raises(ModelError, match="no model"):
        cm3kit.load(f"{tmp_path}/none:int8", device="cpu")
