"""Tiny folders of public families, with the tensor names and configurations of the released models and random weights.

It imports nothing of this project, so that `scripts/public_vectors.py` can use it beside the authors' code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SEED, WORDS, ROWS = 11, 300, 384
TEXTS = [
    "a red apple and a green apple",
    "the blue square, the red square",
    "<p>12345</p> <h1>naïve café</h1>",
    "seven quick brown foxes jump over lazy dogs while nobody watches",
] * 3
CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

LLADA_TOKENS = (
    "<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|mdm_mask|>",
)  # fmt: skip
DREAM_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")

LLADA: dict[str, Any] = {
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "activation_type": "silu", "alibi": False,
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
    "attention_dropout": 0.0, "attention_layer_norm": False, "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama", "d_model": 32, "embedding_dropout": 0.0,
    "embedding_size": ROWS, "eos_token_id": WORDS + 1, "flash_attention": False, "include_bias": False,
    "include_qkv_bias": False, "input_emb_norm": False, "layer_norm_type": "rms", "layer_norm_with_affine": True,
    "mask_token_id": WORDS + 5, "max_sequence_length": 256, "mlp_hidden_size": 48, "mlp_ratio": 4, "n_heads": 4,
    "n_kv_heads": 2, "n_layers": 2, "pad_token_id": WORDS + 1, "residual_dropout": 0.0, "rms_norm_eps": 1e-05,
    "rope": True, "rope_full_precision": True, "rope_theta": 500000.0, "scale_logits": False, "vocab_size": ROWS,
    "weight_tying": False,
}  # fmt: skip
DREAM: dict[str, Any] = {
    "architectures": ["DreamModel"], "model_type": "Dream", "attention_dropout": 0.0, "bos_token_id": WORDS,
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "eos_token_id": WORDS, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48,
    "mask_token_id": WORDS + 4, "max_position_embeddings": 256, "max_window_layers": 28, "num_attention_heads": 4,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": WORDS, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
    "use_cache": True, "use_sliding_window": False, "vocab_size": ROWS,
}  # fmt: skip
CONFIGS = {"llada": LLADA, "dream": DREAM, "diffucoder": DREAM}
FOLDERS = {
    "llada": "LLaDA-8B-Instruct",
    "dream": "Dream-v0-Instruct-7B",
    "diffucoder": "DiffuCoder-7B-Instruct",
}


def tensors(family: str) -> dict[str, torch.Tensor]:
    """Weights under the released names, drawn from a seed that is the family's."""
    rng = torch.Generator().manual_seed(SEED + list(CONFIGS).index(family))

    def drawn(*shape: int) -> torch.Tensor:
        made = torch.randn(*shape, generator=rng)
        return made * (2.5 / shape[-1] ** 0.5) if len(shape) > 1 else made * 0.2

    def norm(width: int) -> torch.Tensor:
        return 1 + drawn(width)

    llada, out = family == "llada", {}
    d, kv, ff = 32, 16, 48
    for layer in range(2):
        at = f"model.transformer.blocks.{layer}." if llada else f"model.layers.{layer}."
        inside = {"attention": "" if llada else "self_attn.", "mlp": "" if llada else "mlp."}
        names = ("attn_norm", "ff_norm") if llada else ("input_layernorm", "post_attention_layernorm")
        down = (
            ("attn_out", "ff_proj", "up_proj", "ff_out")
            if llada
            else ("o_proj", "gate_proj", "up_proj", "down_proj")
        )
        for name in names:
            out[f"{at}{name}.weight"] = norm(d)
        for name, size in (("q_proj", d), ("k_proj", kv), ("v_proj", kv)):
            out[f"{at}{inside['attention']}{name}.weight"] = drawn(size, d)
            if not llada:
                out[f"{at}{inside['attention']}{name}.bias"] = drawn(size)
        out[f"{at}{inside['attention']}{down[0]}.weight"] = drawn(d, d)
        out[f"{at}{inside['mlp']}{down[1]}.weight"] = drawn(ff, d)
        out[f"{at}{inside['mlp']}{down[2]}.weight"] = drawn(ff, d)
        out[f"{at}{inside['mlp']}{down[3]}.weight"] = drawn(d, ff)
    embed, last, head = (
        ("model.transformer.wte", "model.transformer.ln_f", "model.transformer.ff_out")
        if llada
        else ("model.embed_tokens", "model.norm", "lm_head")
    )
    out[f"{embed}.weight"] = drawn(ROWS, d) * 2
    out[f"{last}.weight"] = norm(d)
    out[f"{head}.weight"] = drawn(ROWS, d)
    return out


def write(family: str, folder: Path) -> Path:
    """A folder as it is released: in two shards, and Dream's tokenizer in the files of its own class."""
    made = folder / FOLDERS[family]
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps(CONFIGS[family]))
    whole = tensors(family)
    names, index = sorted(whole), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, made / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(part, shard)
    size = sum(each.nbytes for each in whole.values())
    (made / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    )
    _write_tokenizer(family, made)
    return made


def _write_tokenizer(family: str, folder: Path) -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
    )
    made.train_from_iterator(TEXTS, trainer)
    assert made.get_vocab_size() == WORDS
    tokens = LLADA_TOKENS if family == "llada" else DREAM_TOKENS
    if family == "llada":
        made.add_special_tokens(list(tokens))
        made.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
        )
        return
    made.model.save(str(folder))
    added = {
        str(WORDS + place): {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                             "single_word": False, "special": True}
        for place, token in enumerate(tokens)
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": added, "tokenizer_class": "DreamTokenizer",
                    "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}})
    )  # fmt: skip
