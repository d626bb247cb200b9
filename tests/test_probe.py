"""Public decoders are tried out before they are trained: what would become another model is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from cm3kit.decoders.probe import check_backbone
from cm3kit.models.backbone import forward, load_backbone, save_backbone
from cm3kit.models.transplant import Borrowed, load_transplanted
from cm3kit.models.windows import clear_windows
from cm3kit_tokenizers.errors import ModelError, in_a_line
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import MARKUP, Vocab

IDS, ROW = 300, 80
SIZES: dict[str, Any] = {
    "vocab_size": IDS, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 6, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 16,
}  # fmt: skip
GEMMA4: dict[str, Any] = {
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": IDS, "sliding_window": 16, "global_head_dim": 8,
}  # fmt: skip
T = transformers
SOUND: dict[str, Callable[[], PreTrainedModel]] = {
    "mistral": lambda: T.MistralForCausalLM(T.MistralConfig(**SIZES, **HEADS, sliding_window=16)),
    "gemma3": lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(**SIZES, **HEADS, sliding_window=16)),
    "gemma4": lambda: T.Gemma4ForCausalLM(T.Gemma4TextConfig(**SIZES, **HEADS, **GEMMA4)),
    "granite": lambda: T.GraniteForCausalLM(
        T.GraniteConfig(**SIZES, num_key_value_heads=2, logits_scaling=8.0)
    ),
    "cohere": lambda: T.CohereForCausalLM(T.CohereConfig(**SIZES, num_key_value_heads=2)),
    "deepseek_v3": lambda: T.DeepseekV3ForCausalLM(T.DeepseekV3Config(**SIZES, **LATENT)),
    "falcon": lambda: T.FalconForCausalLM(T.FalconConfig(**SIZES, multi_query=True, alibi=False)),
    "gpt_oss": lambda: T.GptOssForCausalLM(
        T.GptOssConfig(**SIZES, **HEADS, num_local_experts=4, num_experts_per_tok=2, sliding_window=16)
    ),
}
NEO: dict[str, Any] = {
    "vocab_size": IDS, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "window_size": 16,
    "attention_types": [[["global", "local"], 2]], "max_position_embeddings": 128, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LEAKS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt_neo": lambda: T.GPTNeoForCausalLM(T.GPTNeoConfig(**NEO)),
    "lfm2": lambda: T.Lfm2ForCausalLM(
        T.Lfm2Config(**SIZES, num_key_value_heads=2, layer_types=["conv", "full_attention"] * 2)
    ),
    "mamba": lambda: T.MambaForCausalLM(
        T.MambaConfig(vocab_size=IDS, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
    "modernbert": lambda: T.ModernBertDecoderForCausalLM(
        T.ModernBertDecoderConfig(**{**SIZES, "cls_token_id": 1, "sep_token_id": 2, "eos_token_id": 2})
    ),
}


def saved(make: Callable[[], PreTrainedModel], folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = make()
        for each in model.parameters():
            if each.ndim == 1:  # norms and biases, which begin alike
                each.data += 0.1 * torch.randn_like(each)
        model.save_pretrained(folder)
    return folder


def borrowed(folder: Path) -> tuple[Borrowed, Vocab]:
    text = TextTokenizer.train(["a red apple"] * 2, 262)
    markup = [[number % 50 + 5, 7] for number in range(len(MARKUP))]
    return Borrowed(str(folder), text, [[number] for number in range(text.size)], markup), Vocab(text.size, 8)


@pytest.mark.parametrize("name", list(SOUND))
def test_a_sound_family_is_the_same_model_here_in_steps_and_after_export(name: str, tmp_path: Path) -> None:
    theirs, vocab = borrowed(saved(SOUND[name], tmp_path / "theirs"))
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    model = load_transplanted(theirs, vocab, ROW)
    short = torch.randint(vocab.text_size, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # shorter than any window, so that nothing has to be cleared for it
        old, new = before(input_ids=short).logits, forward(model, short + vocab.text.start)
    scale = max(1.0, float(old.abs().max()))
    columns = slice(vocab.text.start, vocab.text.stop)
    assert float((old[..., : vocab.text_size] - new[..., columns]).abs().max()) < 1e-4 * scale
    note = clear_windows(model, ROW)
    assert (note is not None) == (name in ("mistral", "gemma3", "gemma4", "gpt_oss"))
    done = check_backbone(model, name, ROW, causal=True, full=True, ids=vocab.text)
    assert len(done) == 9 and all(each.passed for each in done)
    save_backbone(model, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    row = (
        torch.randint(vocab.text_size, (1, ROW), generator=torch.Generator().manual_seed(2))
        + vocab.text.start
    )
    with torch.no_grad():
        wanted, found = again(input_ids=row).logits, forward(model, row)
    assert float((wanted - found).abs().max()) < 1e-4 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("name", list(LEAKS))
def test_what_would_become_another_model_is_refused_at_both_doors(name: str, tmp_path: Path) -> None:
    theirs, vocab = borrowed(saved(LEAKS[name], tmp_path))
    for moved in (True, False):
        with pytest.raises(ModelError) as caught:
            model = load_transplanted(theirs, vocab, ROW) if moved else load_backbone(tmp_path, 0)
            clear_windows(model, ROW)
            check_backbone(model, name, ROW, causal=True, full=False, ids=vocab.text if moved else None)
        assert "cannot be the backbone" in str(caught.value) and "\n" not in str(caught.value)


def test_a_window_that_is_not_cleared_is_found(tmp_path: Path) -> None:
    model = load_backbone(saved(SOUND["mistral"], tmp_path), 0)
    with pytest.raises(ModelError, match="logits are off by"):
        check_backbone(model, "mistral", ROW, causal=True, full=False)
    assert clear_windows(model, 16) is None
    assert check_backbone(model, "mistral", 16, causal=True, full=False)


def test_a_long_error_ends_with_a_whole_word() -> None:
    address = "https://github.com/huggingface/transformers/issues/28005"
    line = in_a_line(ValueError(f"{'word ' * 45}\n see {address}"))
    assert line.endswith("…") and len(line) <= 240 and "\n" not in line
    assert address in line or "http" not in line
