"""Attention patterns do what they say, and checkpoints that do not fit are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packed import packed_mask, packed_positions
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from cm3kit.models.backbone import (
    BackboneConfig,
    build_backbone,
    forward,
    head,
    hidden_states,
    load_backbone,
)
from cm3kit_tokenizers.errors import ModelError

TINY = BackboneConfig(
    hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48, max_positions=64, std=0.2
)
V = 50


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_causal_is_the_default_of_transformers(family: str) -> None:
    model = build_backbone(TINY.model_copy(update={"family": family}), V)
    with torch.no_grad():
        assert torch.allclose(forward(model, ids(2, 9)), model(ids(2, 9)).logits, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_full_is_an_explicit_full_mask_and_leaves_no_trace(family: str) -> None:
    model = build_backbone(TINY.model_copy(update={"family": family}), V)
    with torch.no_grad():
        before = forward(model, ids(2, 9))
        full = forward(model, ids(2, 9), "full")
        explicit = forward(model, ids(2, 9), torch.ones(2, 1, 9, 9, dtype=torch.bool))
        assert torch.allclose(full, explicit, atol=1e-5)
        assert (full[:, 0] - before[:, 0]).abs().max() > 1e-2
        assert torch.equal(forward(model, ids(2, 9)), before)


SMALL: dict[str, Any] = {
    "vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 32, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
WINDOWED = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "pad_token_id": None}
OTHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL)),
    "falcon": lambda: transformers.FalconForCausalLM(transformers.FalconConfig(**SMALL)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL, **WINDOWED)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SMALL, **WINDOWED)),
}


@pytest.mark.parametrize("family", list(OTHERS))
def test_other_families_look_both_ways_when_asked(family: str) -> None:
    # Some do not read `is_causal`, and some see a window unless they are given a mask.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = OTHERS[family]().eval()
    ids = torch.randint(0, 30, (1, 12), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % 30
    with torch.no_grad():
        full = forward(model, ids, "full")
        assert torch.allclose(
            full, forward(model, ids, torch.ones(1, 1, 12, 12, dtype=torch.bool)), atol=1e-5
        )
        assert (full[0, 0] - forward(model, other, "full")[0, 0]).abs().max() > 1e-3
        assert torch.equal(forward(model, ids), model(input_ids=ids).logits)
        assert torch.equal(forward(model, ids)[0, 0], forward(model, other)[0, 0])


def test_packed_documents_do_not_see_each_other() -> None:
    model = build_backbone(TINY, V)
    documents = torch.tensor([[7, 7, 7, 7, 2, 2, 2, 5, 5, -1], [0, 0, 1, 1, 1, 1, 1, 1, -1, -1]])
    row = ids(2, 10)
    with torch.no_grad():
        packed = forward(model, row, packed_mask(documents), packed_positions(documents))
        for b in range(2):
            for name in documents[b].unique():
                where = documents[b] == name
                alone = forward(model, row[b : b + 1, where])
                assert torch.allclose(packed[b, where], alone[0], atol=1e-5)


def test_packed_positions_by_hand() -> None:
    documents = torch.tensor([[3, 3, 3, 1, 2, 2], [0, 1, 1, 1, 1, 0]])
    assert packed_positions(documents).tolist() == [[0, 1, 2, 0, 0, 1], [0, 0, 1, 2, 3, 0]]


def test_head_on_a_selection_equals_the_whole() -> None:
    model = build_backbone(TINY, V)
    with torch.no_grad():
        hidden = hidden_states(model, ids(2, 9))
        assert torch.allclose(head(model, hidden[:, ::3]), forward(model, ids(2, 9))[:, ::3], atol=1e-6)


def test_a_seed_makes_the_weights_and_the_global_generator_stays() -> None:
    state = torch.get_rng_state()
    first, same = build_backbone(TINY, V), build_backbone(TINY, V)
    other = build_backbone(TINY.model_copy(update={"seed": 1}), V)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)
    assert first.lm_head.weight is first.model.embed_tokens.weight


def test_dropout_acts_in_training_alone_and_keeps_the_names() -> None:
    plain, dropped = build_backbone(TINY, V), build_backbone(TINY.model_copy(update={"dropout": 0.5}), V)
    assert plain.state_dict().keys() == dropped.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(forward(plain, ids(1, 6)), forward(dropped, ids(1, 6)))
        dropped.train()
        assert not torch.allclose(forward(plain, ids(1, 6)), forward(dropped, ids(1, 6)), atol=1e-2)


def test_saved_backbone_loads_and_grows(tmp_path: Path) -> None:
    model = build_backbone(TINY, V)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(
            forward(load_backbone(tmp_path, V), ids(1, 6)), forward(model, ids(1, 6)), atol=1e-6
        )
        grown = forward(load_backbone(tmp_path, V + 7), ids(1, 6))
        assert grown.shape == (1, 6, V + 7)
        assert torch.allclose(grown[..., :V], forward(model, ids(1, 6)), atol=1e-6)


@pytest.mark.parametrize("harm", ["missing", "unexpected", "expected", "finite"])
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, harm: str) -> None:
    build_backbone(TINY, V).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if harm == "missing":
        del tensors[name]
    elif harm == "unexpected":
        tensors["model.layers.1.mlp.side_proj.weight"] = torch.zeros(3)
    elif harm == "expected":
        tensors[name] = torch.zeros(3, 5)
    else:
        tensors[name][0, 0] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=harm) as caught:
        load_backbone(tmp_path, V)
    assert caught.value.code == "bad_checkpoint"
    assert "model.layers.1.mlp" in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load_backbone(tmp_path, V)


def test_settings_are_checked() -> None:
    for wrong in ({"layers": 0}, {"width": 3}, {"heads": 3}, {"dropout": 1.0}, {"kv_heads": 3}):
        with pytest.raises(ValidationError):
            BackboneConfig.model_validate(wrong)
