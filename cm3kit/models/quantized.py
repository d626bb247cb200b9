"""Weights of public models in few bits, as transformers makes them of a folder while it reads it: `FOLDER:int8`.

Products of the layers take the weights as they are kept; embedding and head stay in the number format of the files.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from cm3kit.models.plain import DecoderWeights
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.installing import install

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Format = Literal["int8", "int4", "nf4"]
"""torchao's int8 and int4, weights alone, and bitsandbytes' NF4 (Dettmers et al., arXiv:2305.14314)."""
FORMATS: tuple[Format, ...] = get_args(Format)
PACKAGES: dict[Format, str] = {"int8": "torchao", "int4": "torchao", "nf4": "bitsandbytes"}


def split_format(wanted: str) -> tuple[str, Format | None]:
    """The model that a name or path means, and the format that its weights are to be brought into."""
    base, _, last = wanted.rpartition(":")
    found = next((each for each in FORMATS if each == last), None)
    return (base, found) if base and found else (wanted, None)


def quantization(wanted: Format) -> Any:
    """What transformers reads a folder with.

    Raises:
        ConfigError: the package is not installed (`missing_extra`), or the format is for GPUs and there is none
            (`bad_value`).
    """
    package = PACKAGES[wanted]
    if find_spec(package) is None:
        raise ConfigError(
            f"weights in {wanted} need {package}; {install('quantized')}, or leave :{wanted} out.",
            code="missing_extra",
        )
    if wanted == "nf4":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    if wanted == "int4" and not torch.cuda.is_available():
        raise ConfigError(
            "torchao's int4 has products for GPUs alone; use :nf4 (bitsandbytes) or :int8 on a CPU.",
            code="bad_value",
        )
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig() if wanted == "int8" else Int4WeightOnlyConfig(group_size=128))


def is_quantized(model: DecoderWeights) -> bool:
    """Whether products of a model's layers are of weights in few bits, which only its own modules compute."""
    return bool(getattr(model, "is_quantized", False))


def plain_tables(model: PreTrainedModel) -> bool:
    """Whether embedding and head are plain tensors, whose rows can be moved."""
    modules: tuple[nn.Module | None, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    tables: list[Any] = [each.weight for each in modules if each is not None]
    return all(type(each) in (Tensor, nn.Parameter) and each.is_floating_point() for each in tables)
