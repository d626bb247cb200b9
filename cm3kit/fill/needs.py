"""What using a model takes, told from its configuration and the headers of its files, without reading weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn

from cm3kit.decoders.causal.guidance import streams
from cm3kit.fill.defaults import DIFFUSION, Defaults
from cm3kit.fill.finding import find
from cm3kit.fill.runs import INDEX
from cm3kit.models.empty import empty_backbone
from cm3kit.models.families import configured, family_of, read_config
from cm3kit.models.quantized import Format, split_format
from cm3kit.models.sizes import hold_configuration
from cm3kit.models.transplant import borrow_text
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.weights import read_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Of a weight in few bits, with the scales of its rows or of its groups of 128 and 64.
FEW: Mapping[Format, float] = {"int8": 1.0, "int4": 0.5 + 4 / 128, "nf4": 0.5 + 4 / 64}
IMAGE_BYTES = 4  # image tokenizers are kept in fp32


@dataclass(frozen=True, slots=True)
class Needs:
    """Sizes are bytes.

    Attributes:
        parameters: of the decoder, with the rows of our ids.
        dtype: number format of its weights, or the format that the name asks for.
        weights: of the decoder.
        image: of the image tokenizer; 0 where there is none, or its weights are not there.
        cache: keys and values of one result in a row of the whole window, in all its streams; 0 where all is computed
            anew in each pass.
        streams: rows of one guided picture.
        window: ids of the longest row.
        total: for one result at a time, besides the program and what a pass holds for a moment.
    """

    parameters: int
    dtype: str
    weights: int
    image: int
    cache: int
    streams: int
    window: int
    total: int

    def as_dict(self) -> dict[str, Any]:
        """The same as a mapping."""
        return asdict(self)


def needs(name: str | Path | None) -> Needs:
    """What using a model takes.

    Raises:
        ModelError: there is no such model, or its configuration cannot be used.
    """
    base, quantize = split_format(str(find(name)))
    folder = Path(base)
    own = (folder / INDEX).is_file()
    source = folder / "decoder" if own else folder
    defaults, size = _own(folder) if own else _public(folder)
    with torch.device("meta"):
        backbone = empty_backbone(source, size)
    raw = read_config(source) or {}
    kept = (own and defaults.prompt_style == "minimal") or (not own and family_of(folder) is None)
    dtype = "float32" if kept else str(raw.get("dtype") or raw.get("torch_dtype") or _of_files(source))
    weights = _weights(backbone, BYTES.get(dtype, 4.0), quantize)
    rows = streams(defaults.image, 2) if defaults.pictures is not None or defaults.image.guidance != 1 else 1
    cache = (
        0
        if defaults.decoders == (DIFFUSION,)
        else rows * _cache(backbone, defaults.window, BYTES.get(dtype, 4.0))
    )
    image = _image(folder, own)
    count = sum(each.numel() for each in backbone.parameters())
    total = weights + image + cache
    return Needs(count, quantize or dtype, weights, image, cache, rows, defaults.window, total)


def _of_files(folder: Path) -> str:
    """The number format of the first tensor, as transformers takes it where the configuration is silent."""
    for path in sorted(folder.glob("*.safetensors"))[:1]:
        with safe_open(path, "pt") as file:
            told = str(file.get_slice(next(iter(file.keys()))).get_dtype())
            return {"BF16": "bfloat16", "F16": "float16", "F64": "float64"}.get(told, "float32")
    return "float32"


def _own(folder: Path) -> tuple[Defaults, int]:
    defaults = Defaults.of(folder)
    vocab = Vocab.from_dict(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    return defaults, len(vocab)


def _public(folder: Path) -> tuple[Defaults, int]:
    """The defaults of a public model, as far as they matter here, and the size of its vocabulary in our ids."""
    family, raw = family_of(folder), read_config(folder) or {}
    hold_configuration(folder, whole=False, family=family)
    borrowed = borrow_text(str(folder))
    size = len(Vocab(borrowed.text.size, len(borrowed.codes)))
    if family is None:
        said = raw.get("max_position_embeddings")
        return Defaults(window=max(16, min(2048, said if isinstance(said, int) else 2048))), size
    known = int(configured(family, raw).max_position_embeddings)
    fields: dict[str, Any] = {"decoders": (family.decoder,), "window": max(16, known), **family.defaults}
    if family.pictures is not None:
        fields["pictures"] = {"begin": family.pictures.begin, "end": family.pictures.end}
    elif family.decoder == DIFFUSION:
        fields["window"] = max(16, min(2048, known // 2))
    return Defaults.model_validate(fields), size


def _weights(backbone: PreTrainedModel, width: float, quantize: Format | None) -> int:
    """Bytes of the decoder's weights; in few bits are those of the layers' products."""
    head = backbone.get_output_embeddings()
    few = {
        id(module.weight)
        for module in backbone.modules()
        if quantize and isinstance(module, nn.Linear) and module is not head
    }
    return int(
        sum(
            each.numel() * (FEW[quantize] if quantize and id(each) in few else width)
            for each in backbone.parameters()
        )
    )


def _cache(backbone: PreTrainedModel, window: int, width: float) -> int:
    config = backbone.config
    heads = config.num_attention_heads
    wide = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kept * wide * window * width)


def _image(folder: Path, own: bool) -> int:
    """Bytes of the image tokenizer, by the headers of its files."""
    files = sorted((folder / "image" if own else folder).glob("*.safetensors"))
    shapes = [each for file in files for each in read_shapes(file).items()]
    return IMAGE_BYTES * sum(math.prod(shape) for name, shape in shapes if own or ".vqmodel." in name)
