"""Low-rank adapters (LoRA, arXiv:2106.09685) on a pretrained backbone, by PEFT; new rows and the head learn whole."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from pydantic import Field
from transformers import PreTrainedModel

from cm3kit.config import Settings
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.installing import install


class LoraSettings(Settings):
    """`rank` 0 is none. The adapters' product is scaled by `alpha` / `rank`.

    `targets` are names of linear layers, such as q_proj; none are all linear layers but the head.
    """

    rank: int = Field(0, ge=0)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ()


def add_lora(model: PreTrainedModel, settings: LoraSettings, new_ids: Sequence[int], seed: int = 0) -> Any:
    """Freeze a model but for adapters, the embeddings of `new_ids` and the head, in place.

    A head that is the same table as the embeddings learns the rows of `new_ids` alone; where there are none, adapters
    learn alone.

    Returns:
        PEFT's `PeftModel` around the model, for `without_lora`.

    Raises:
        ConfigError: PEFT is not installed (`missing_extra`), or no layer has such a name (`bad_config`).
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(f"lora.rank needs PEFT: {install('peft')}.", code="missing_extra") from error
    import torch

    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) or "all-linear",
        trainable_token_indices={names[id(embedding)].rsplit(".", 1)[-1]: list(new_ids)} if new_ids else None,
        modules_to_save=None if tied or not new_ids else [names[id(head)].rsplit(".", 1)[-1]],
        fan_in_fan_out=any(type(each).__name__ == "Conv1D" for each in model.modules()),
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an older name
            torch.default_generator.manual_seed(seed)
            return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"lora: {' '.join(str(error).split())[:200]}", code="bad_config") from error


def without_lora(adapted: Any) -> PreTrainedModel:
    """A copy of the model with its adapters merged in, under the names of transformers."""
    merged: PreTrainedModel = copy.deepcopy(adapted).merge_and_unload()
    return merged
