"""Export of a decoder for inference servers: padded vocabulary, end ids, and suppressed ids.

vLLM, SGLang and others split the embedding over devices, and ask for rows in a multiple of 64. The folder is given ids
(`prompt_token_ids`), as its id space is no text tokenizer's; `vocab.json` says which id is what.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig

from cm3kit.fill.finding import find
from cm3kit.fill.folder import load_parts, write_json
from cm3kit.fill.parts import Parts
from cm3kit.models.backbone import LARGE, save_backbone
from cm3kit.publish import publishing
from cm3kit_tokenizers.errors import ConfigError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export_decoder(
    model: str | Path | None, target: Path, *, multiple: int = 64, dtype: str = "bf16"
) -> Path:
    """Write the causal decoder of a model as `config.json`, `generation_config.json` and weights.

    The head's padding rows are copies of that of `<pad>`, which a trained decoder does not write, and
    `generation_config.json` suppresses them, `<pad>` and `<mask>`.

    Args:
        multiple: the vocabulary becomes a multiple of this.
        dtype: fp32, fp16 or bf16.

    Raises:
        ConfigError: the model has no causal decoder, or an argument is out of range (`bad_value`).
        ModelError: see `load_parts`. OutputError: the target exists, or the disk is full.
    """
    if multiple < 1 or dtype not in DTYPES:
        raise ConfigError(
            f"multiple = {multiple}, dtype = {dtype!r}: give a positive number, and one of {', '.join(DTYPES)}.",
            code="bad_value",
        )
    parts = load_parts(find(model))
    if "cm3" not in parts.defaults.decoders:
        raise ConfigError(
            f"model {parts.name!r} writes in place; inference servers run causal decoders alone.",
            code="bad_value",
        )
    with publishing(target) as folder:
        _pad(parts, multiple)
        save_backbone(parts.backbone.to(DTYPES[dtype]), folder, shard=LARGE)
        write_json(folder / "vocab.json", parts.vocab.to_dict())
    return target


@torch.no_grad()
def _pad(parts: Parts, multiple: int) -> None:
    """Pad the vocabulary in place, in the configurations too."""
    backbone, vocab = parts.backbone, parts.vocab
    known = len(vocab)
    backbone.resize_token_embeddings(-(-known // multiple) * multiple, mean_resizing=False)
    for module in (backbone.get_input_embeddings(), backbone.get_output_embeddings()):
        for table in (module.weight, getattr(module, "bias", None)):
            if table is not None:
                table[known:] = table[vocab.pad]
    size = len(backbone.get_input_embeddings().weight)
    ends = [vocab.eod, vocab.eoss]
    backbone.config.eos_token_id, backbone.config.pad_token_id = ends, vocab.pad
    backbone.generation_config = GenerationConfig(
        eos_token_id=ends,
        pad_token_id=vocab.pad,
        suppress_tokens=[vocab.pad, vocab.mask, *range(known, size)],
        do_sample=True,
        max_length=int(getattr(backbone.config, "max_position_embeddings", parts.defaults.window)),
    )
