"""LLaDA, dense (arXiv:2502.09992): a Llama with full attention, under other tensor names.

Every place is scored at itself. The head is `transformer.ff_out`, and the down projection of a block is called
`ff_out` too.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from cm3kit.models.families import Chat, Family, Raw, families, mask_of, refuse_class, refuse_other, whole
from cm3kit_tokenizers.vocab import Vocab

RELEASED: dict[str, Any] = {
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "alibi": False,
    "attention_layer_norm": False, "input_emb_norm": False, "scale_logits": False, "include_bias": False,
    "include_qkv_bias": False, "bias_for_layer_norm": False, "block_group_size": 1, "layer_norm_with_affine": True,
    "rope_scaling": None,
}  # fmt: skip
NEEDED = ("d_model", "n_heads", "n_layers", "max_sequence_length", "vocab_size")
START, END, TURN = 5, 6, 7  # reserved specials: start and end of a role's name, end of a turn


def config(raw: Raw) -> LlamaConfig:
    """The same shape as a Llama."""
    refuse_class(raw, "LLaDA", "LLaDAModelLM")
    refuse_other(raw, "LLaDA", RELEASED)
    width, heads, layers, length, words = (whole(raw, name) for name in NEEDED)
    grouped = 1 if raw.get("multi_query_attention") else heads
    return LlamaConfig(
        vocab_size=raw.get("embedding_size") or words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=raw.get("n_kv_heads") or grouped,
        head_dim=width // heads,
        intermediate_size=raw.get("mlp_hidden_size") or raw.get("mlp_ratio", 4) * width,
        max_position_embeddings=length,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": raw.get("rope_theta", 10_000.0)},
        tie_word_embeddings=raw.get("weight_tying", True),
        hidden_act="silu",
        bos_token_id=None,
        eos_token_id=raw.get("eos_token_id"),
        pad_token_id=raw.get("pad_token_id"),
    )


families("llada")(
    Family(
        name="llada",
        about="LLaDA-8B, Base and Instruct, and LLaDA-1.5 (arXiv:2502.09992, 2505.19223)",
        owns=lambda raw, name: raw.get("model_type") == "llada",
        config=config,
        architecture=LlamaForCausalLM,
        mask=lambda raw: mask_of(raw, 126_336),
        shift=False,
        specials={
            Vocab.pad: ("<|endoftext|>",),
            Vocab.eod: ("<|startoftext|>", "<|endoftext|>"),
            Vocab.eoss: ("<|endoftext|>",),
            Vocab.mask: ("<|mdm_mask|>",),
            START: ("<|start_header_id|>",),
            END: ("<|end_header_id|>",),
            TURN: ("<|eot_id|>",),
        },
        preset="llada",
        renamed={
            r"^model\.transformer\.ff_out\.": "lm_head.",
            r"^model\.transformer\.wte\.": "model.embed_tokens.",
            r"^model\.transformer\.ln_f\.": "model.norm.",
            r"^model\.transformer\.blocks\.": "model.layers.",
            r"\.attn_norm\.": ".input_layernorm.",
            r"\.ff_norm\.": ".post_attention_layernorm.",
            r"\.q_proj\.": ".self_attn.q_proj.",
            r"\.k_proj\.": ".self_attn.k_proj.",
            r"\.v_proj\.": ".self_attn.v_proj.",
            r"\.attn_out\.": ".self_attn.o_proj.",
            r"\.ff_proj\.": ".mlp.gate_proj.",
            r"\.up_proj\.": ".mlp.up_proj.",
            r"\.ff_out\.": ".mlp.down_proj.",
        },
        chat=Chat((Vocab.eod, START, "user", END, "\n\n"), (TURN, START, "assistant", END, "\n\n")),
    )
)
