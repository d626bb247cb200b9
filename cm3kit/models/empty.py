"""Decoders without their weights, to be counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cm3kit.models.families import configured, family_of, read_config, refuse_unknown
from cm3kit.models.gguf import gguf_file
from cm3kit.models.sizes import hold_configuration
from cm3kit_tokenizers.errors import Cm3kitError, ModelError, in_a_line


def empty_backbone(source: str | Path, size: int) -> PreTrainedModel:
    """The decoder of a source with `size` ids and without its weights, to be counted (under the device "meta").

    Raises:
        ModelError: nothing is there (`unknown_model`), or it is no decoder of transformers (`bad_checkpoint`).
    """
    bad = "bad_checkpoint" if Path(source).exists() else "unknown_model"
    kind: Any = AutoModelForCausalLM
    refuse_unknown(source)
    hold_configuration(Path(source), whole=False, family=family_of(source))
    try:
        if (file := gguf_file(str(source))) is not None:
            config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
        elif (family := family_of(source)) is not None:
            config, kind = configured(family, read_config(Path(source)) or {}), family.architecture
        else:
            config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
        config.vocab_size = size
        make = kind.from_config if kind is AutoModelForCausalLM else kind._from_config
        model: PreTrainedModel = make(config, dtype=torch.float32)
    except Cm3kitError:
        raise
    except Exception as error:
        # transformers and huggingface_hub raise a dozen unrelated types here.
        raise ModelError(f"{source} cannot be loaded as a backbone: {in_a_line(error)}", code=bad) from error
    return model
