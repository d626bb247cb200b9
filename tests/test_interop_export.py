"""What is exported for inference servers is the same decoder, and writes no id that stands for nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

import cm3kit
from cm3kit.models.backbone import forward
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ConfigError


@pytest.mark.parametrize("multiple", [64, 7])
def test_the_decoder_that_ships_is_exported(tmp_path: Path, multiple: int) -> None:
    out = tmp_path / "out"
    command = [
        "model",
        "export",
        "-m",
        "pictures",
        "-o",
        str(out),
        "--pad-to",
        str(multiple),
        "--dtype",
        "fp32",
    ]
    assert run(command) == 0
    kit = cm3kit.load("pictures", device="cpu")
    vocab = kit.vocab
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.vocab_size % multiple == 0 and 0 <= model.config.vocab_size - len(vocab) < multiple
    ids = torch.tensor([[vocab.eod, vocab.markup_id("<p>"), vocab.text.start + 3, vocab.image.start]])
    with torch.no_grad():
        wanted, found = forward(kit.backbone, ids)[..., : len(vocab)], model(ids).logits[..., : len(vocab)]
    assert torch.allclose(wanted, found, atol=1e-5)
    told = GenerationConfig.from_pretrained(out)
    assert told.eos_token_id == [vocab.eod, vocab.eoss]
    assert set(told.suppress_tokens) == {vocab.pad, vocab.mask, *range(len(vocab), model.config.vocab_size)}
    torch.manual_seed(0)
    written = model.generate(
        ids[:, :2], attention_mask=torch.ones(1, 2), max_length=40, temperature=50.0, top_k=0
    )
    assert not set(written[0].tolist()) & set(told.suppress_tokens)
    assert json.loads((out / "vocab.json").read_text())["size"] == len(vocab)
    assert run(command) == 1  # nothing is written over


def test_llama_cpp_s_converter_finds_what_it_reads(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    out = tmp_path / "out"
    assert run(["model", "export", "-m", "pictures", "-o", str(out)]) == 0
    raw = json.loads((out / "config.json").read_text())
    # conversion/llama.py and TextModel of conversion/base.py (ggml-org/llama.cpp)
    assert raw["architectures"] == ["LlamaForCausalLM"] and raw["hidden_act"] == "silu"
    for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "max_position_embeddings", "rms_norm_eps", "vocab_size", "head_dim",
    ):  # fmt: skip
        assert raw[name], name
    assert raw["rope_parameters"]["rope_theta"] and raw["rope_parameters"]["rope_type"] == "default"
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, raw["num_hidden_layers"])
    names = [name for path in out.glob("*.safetensors") for name in load_file(path)]
    assert names and all(known.get_name(name, try_suffixes=(".weight", ".bias")) for name in names)


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    from cm3kit.interop.export import export_decoder

    for wrong in ({"multiple": 0}, {"dtype": "int8"}):
        with pytest.raises(ConfigError, match="give a positive number"):
            export_decoder("pictures", tmp_path / "x", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
