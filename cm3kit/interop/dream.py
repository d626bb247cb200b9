"""Dream (arXiv:2508.15487): a Qwen2.5 with full attention that predicts each position at the one before it."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM

from cm3kit.models.families import Chat, Family, Raw, families, mask_of, refuse_class, refuse_other, whole
from cm3kit_tokenizers.vocab import Vocab

RELEASED: dict[str, Any] = {"hidden_act": "silu", "use_sliding_window": False, "rope_scaling": None}
NEEDED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip
START, END = 5, 6  # reserved specials: start and end of a turn
SPECIALS = {
    Vocab.pad: ("<|endoftext|>",),
    Vocab.eod: ("<|beginoftext|>", "<|endoftext|>"),
    Vocab.eoss: ("<|endoftext|>",),
    Vocab.mask: ("<|mask|>",),
    START: ("<|im_start|>",),
    END: ("<|im_end|>",),
}


def config(raw: Raw) -> Qwen2Config:
    """The same shape as a Qwen2."""
    refuse_class(raw, "Dream", "DreamModel")
    refuse_other(raw, "Dream", RELEASED)
    return Qwen2Config(
        **{name: whole(raw, name) for name in NEEDED},
        hidden_act="silu",
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": raw.get("rope_theta", 10_000.0)},
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=raw.get("eos_token_id"),
        pad_token_id=raw.get("pad_token_id"),
    )


def mask(raw: Raw) -> int:
    """Id of the mask."""
    return mask_of(raw, 151_666)


families("dream")(
    Family(
        name="dream",
        about="Dream-v0, Base and Instruct, and Dream-Coder (arXiv:2508.15487)",
        owns=lambda raw, name: raw.get("model_type") == "Dream" and "diffucoder" not in name.lower(),
        config=config,
        architecture=Qwen2ForCausalLM,
        mask=mask,
        shift=True,
        specials=SPECIALS,
        preset="dream",
        chat=Chat(
            (START, "system\nYou are a helpful assistant.", END, "\n", START, "user\n"),
            (END, "\n", START, "assistant\n"),
        ),
    )
)
