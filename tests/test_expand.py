"""Identity layers in a trained decoder: the same logits at first, gradients in what is new, a way through training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from transformers import PreTrainedModel

from cm3kit.models.backbone import BackboneConfig, build_backbone, load_backbone, save_backbone
from cm3kit.models.expand import expand
from cm3kit.models.timestep import add_timestep
from cm3kit.training.decoder_recipe import DecoderRecipe
from cm3kit.training.estimate import trace_decoder
from cm3kit_tokenizers.errors import ConfigError

torch.set_num_threads(1)
SMALL: dict[str, Any] = {
    "vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 32, "initializer_range": 0.3, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {}, "Qwen3": {"head_dim": 8}, "GPT2": {"n_inner": 48}, "GPTNeoX": {}, "OPT": {"ffn_dim": 48}, "Olmo2": {},
    "Gemma2": {"head_dim": 8, "sliding_window": 4}, "Phi": {}, "Falcon": {}, "StableLm": {},
}  # fmt: skip


def of_kind(kind: str) -> PreTrainedModel:
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **KINDS[kind]})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [1, 3, 4])
def test_a_larger_decoder_computes_the_same_and_learns_with_what_is_new(kind: str, more: int) -> None:
    model = of_kind(kind)
    larger = expand(model, more)
    assert larger.config.num_hidden_layers == 4 + more and model.config.num_hidden_layers == 4
    ids_BT = torch.randint(0, 30, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(ids_BT).logits, larger(ids_BT).logits, atol=1e-5)
        # With a cache, whose places are counted by layer.
        first = larger(ids_BT[:, :6], use_cache=True)
        rest = larger(ids_BT[:, 6:], past_key_values=first.past_key_values, use_cache=True)
        assert torch.allclose(model(ids_BT).logits[:, 6:], rest.logits, atol=1e-4)
    larger(ids_BT, labels=ids_BT).loss.backward()
    silent = [each for each in larger.parameters() if each.ndim == 2 and not each.any()]
    assert len(silent) == 2 * more
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in silent)


def test_copies_are_spread_evenly_and_independent() -> None:
    model = of_kind("Llama")
    larger = expand(model, 2)
    state, was = larger.state_dict(), model.state_dict()
    for place, origin in enumerate([0, 1, 1, 2, 3, 3]):
        key = "mlp.up_proj.weight"
        assert torch.equal(state[f"model.layers.{place}.{key}"], was[f"model.layers.{origin}.{key}"])
    silent = [place for place in range(6) if not state[f"model.layers.{place}.self_attn.o_proj.weight"].any()]
    assert silent == [2, 5]
    with torch.no_grad():
        larger.model.layers[0].mlp.up_proj.weight.zero_()
    assert was["model.layers.0.mlp.up_proj.weight"].any()


def test_what_cannot_be_expanded_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"\(llama\): it has 4 layers, .* 5 are asked for; omit expand"):
        expand(of_kind("Llama"), 5)
    timed = of_kind("Llama")
    add_timestep(timed, 8)
    with pytest.raises(ConfigError, match="conditioned on a time"):
        expand(timed, 1)
    # A copy that is not silent: nothing in it is called what outputs are called.
    monkeypatch.setattr("cm3kit.models.expand.OUTPUTS", {"exit"})
    with pytest.raises(ConfigError, match="its logits would change"):
        expand(of_kind("Llama"), 1)
    with pytest.raises(ValidationError, match="expand needs weights"):
        DecoderRecipe(expand=2)


def test_training_starts_from_a_larger_decoder(tmp_path: Path) -> None:
    shape = BackboneConfig(
        hidden_size=16, layers=2, heads=2, kv_heads=2, intermediate_size=32, max_positions=64
    )
    save_backbone(build_backbone(shape, 300), tmp_path / "first")
    recipe = DecoderRecipe(backbone_from=str(tmp_path / "first"), window=64, expand=2)
    counted = trace_decoder(recipe, 300, fast=False)[0]
    larger = expand(load_backbone(tmp_path / "first", 300), 2)
    assert sum(each.numel() for each in counted.parameters()) == larger.num_parameters()
    save_backbone(larger, tmp_path / "second")
    assert load_backbone(tmp_path / "second", 300).config.num_hidden_layers == 4
