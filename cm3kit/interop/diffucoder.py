"""DiffuCoder (arXiv:2506.20639): Dream's network and tokenizer, with a sampler of its own.

Its configuration says Dream, so the folder's name tells the two apart.
"""

from __future__ import annotations

from transformers import Qwen2ForCausalLM

from cm3kit.interop.dream import END, SPECIALS, START, config, mask
from cm3kit.models.families import Chat, Family, families

families("diffucoder")(
    Family(
        name="diffucoder",
        about="DiffuCoder-7B, Base, Instruct and cpGRPO (arXiv:2506.20639)",
        owns=lambda raw, name: raw.get("model_type") == "Dream" and "diffucoder" in name.lower(),
        config=config,
        architecture=Qwen2ForCausalLM,
        mask=mask,
        shift=True,
        specials=SPECIALS,
        preset="diffucoder",
        # inference_demo.py ends the user's words with a line break, which Qwen's own template does not.
        chat=Chat(
            (START, "system\nYou are a helpful assistant.", END, "\n", START, "user\n"),
            ("\n", END, "\n", START, "assistant\n"),
        ),
    )
)
