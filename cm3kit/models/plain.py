"""Folders of plain Llama and Qwen3 decoders without transformers: their weights, laid out as its modules have them.

`decoders.fast_llama.LeanEngine` computes such a decoder from its weights alone, and importing transformers takes longer
than drawing a picture does. So a folder that says nothing unusual is read here; any other, and any that is damaged, is
left to `models.backbone.load_backbone`, which knows it or says what is wrong with it. `LateModel` is that model for
whoever asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cm3kit.models import families
from cm3kit.models.sizes import hold_configuration

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Beside these a folder holds more than a decoder's own weights.
OTHERS = "adapter_config.json", "timestep.json", "timestep.safetensors"
# What a plain decoder's configuration says; one that says anything else is not read here.
SIZES = (
    "hidden_size", "intermediate_size", "vocab_size", "head_dim", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip
FIXED: Mapping[str, tuple[object, ...]] = {
    "attention_bias": (False,), "mlp_bias": (False,), "hidden_act": ("silu",), "use_sliding_window": (False,),
    "sliding_window": (None,), "pretraining_tp": (1,), "tie_word_embeddings": (False, True),
}  # fmt: skip
IDLE = {
    "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "initializer_range", "layer_types",
    "max_window_layers", "model_type", "pad_token_id", "rms_norm_eps", "rope_parameters", "transformers_version",
    "use_cache",
}  # fmt: skip
CLASSES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


class _Node(nn.Module):
    """A module of transformers as far as it has weights: parts and tensors by their names."""

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class _Rotary(nn.Module):
    """The frequencies of default rotary embedding, θ^(−2i / head_dim) (RoFormer, arXiv:2104.09864, sec. 3.2.2)."""

    attention_scaling = 1.0
    inv_freq: Tensor

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        frequencies = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
        self.register_buffer("inv_freq", frequencies, persistent=False)


class PlainDecoder(nn.Module):
    """What of a causal language model of transformers engines read: its configuration and fp32 weights, by name.

    It computes nothing itself: it says on which `device` engines shall, which take what they keep there, in their own
    format. The weights stay in main memory.

    Args:
        config: what the folder's `config.json` says.
        tensors: by their names in transformers, complete; without a head it is the embedding.
    """

    model: Any
    lm_head: Any

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.device = torch.device("cpu")
        for name, each in tensors.items():
            *path, last = name.split(".")
            node: nn.Module = self
            for part in path:
                if part not in node._modules:
                    node.add_module(part, _Node())
                node = node._modules[part]  # type: ignore[assignment]
            node.register_parameter(last, nn.Parameter(each, requires_grad=False))
        body = self.model
        body.layers = nn.ModuleList(body.layers._modules[str(n)] for n in range(config["num_hidden_layers"]))
        for layer in body.layers:
            layer.self_attn.head_dim = config["head_dim"]
        body.rotary_emb = _Rotary(config["head_dim"], config["rope_parameters"]["rope_theta"])
        self.eval()

    def to(self, device: torch.device) -> PlainDecoder:  # type: ignore[override]
        """Have engines compute on a device; returns itself."""
        self.device = torch.device(device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        dtype: torch.dtype = self.get_input_embeddings().weight.dtype
        return dtype

    def get_input_embeddings(self) -> Any:
        """The table of embeddings, (V, D) in `weight`."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> Any:
        """The head, (V, D) in `weight`."""
        return self.get_input_embeddings() if self.config.tie_word_embeddings else self.lm_head


def read_plain(folder: Path, vocab_size: int) -> PlainDecoder | None:
    """The decoder of a folder, its weights as fp32; None if it is not plain, or not whole.

    Args:
        vocab_size: ids that are to have rows; a folder with fewer is not read here.

    Raises:
        ModelError: its configuration does not fit the headers of its weights (`bad_checkpoint`).
    """
    if not (folder / "config.json").is_file() or any((folder / each).exists() for each in OTHERS):
        return None
    hold_configuration(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not _is_plain(config, vocab_size) or _is_claimed(config, folder):
            return None
        found = {name: each for file in _files(folder) for name, each in load_file(file).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError):
        return None
    wanted = dict(_shapes(config))
    if {name: tuple(each.shape) for name, each in found.items()} != wanted:
        return None
    # A copy: what a file holds may change under what was mapped from it.
    tensors = {
        name: found[name].to(torch.float32, copy=True) for name in wanted if found[name].is_floating_point()
    }
    if len(tensors) < len(wanted) or not all(bool(torch.isfinite(each).all()) for each in tensors.values()):
        return None
    return PlainDecoder(config, tensors)


def _is_plain(config: Mapping[str, Any], vocab_size: int) -> bool:
    kind, rope = config["model_type"], config["rope_parameters"]
    return (
        config["architectures"] == [CLASSES.get(kind)]
        and not set(config) - {*SIZES, *FIXED, *IDLE}
        and all(type(config[name]) is int and config[name] > 0 for name in SIZES)
        and all(config[name] in allowed for name, allowed in FIXED.items() if name in config)
        and set(rope) == {"rope_theta", "rope_type"}
        and rope["rope_type"] == "default"
        and type(rope["rope_theta"]) in (int, float)
        and rope["rope_theta"] > 0
        and isinstance(config["tie_word_embeddings"], bool)
        and isinstance(config["rms_norm_eps"], float)
        and set(config.get("layer_types", ())) <= {"full_attention"}
        and config["vocab_size"] >= vocab_size
    )


def _is_claimed(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether a plug-in's family knows it as something else; those that are built in own no plain ones."""
    known = (families.families[name] for name in families.families)
    return any(each.owns(config, folder.resolve().name) for each in known)


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    listed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(listed.values()))]


def _shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a plain decoder by its name, in the order of transformers' modules."""
    vocab, hidden, inner, head_dim = (config[name] for name in SIZES[2:3] + SIZES[:2] + SIZES[3:4])
    queries, keys = (head_dim * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    yield "model.embed_tokens.weight", (vocab, hidden)
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
    }  # fmt: skip
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
    layer |= {
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layer |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    for number in range(config["num_hidden_layers"]):
        yield from ((f"model.layers.{number}.{name}.weight", shape) for name, shape in layer.items())
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


DecoderWeights: TypeAlias = "PreTrainedModel | PlainDecoder"
"""What engines read of a decoder."""


def device_of(model: DecoderWeights) -> torch.device:
    """Where engines are to compute a decoder."""
    if isinstance(model, PlainDecoder):
        return model.device
    device: torch.device = model.get_input_embeddings().weight.device
    return device


class LateModel:
    """A decoder whose weights are there, and that is made a model of transformers when that is asked for.

    From then on the weights are the model's, so that what is changed in it is seen.

    Args:
        plain: the weights.
        load: gives the same as a model.
    """

    def __init__(self, plain: PlainDecoder, load: Callable[[], PreTrainedModel]) -> None:
        self._weights: DecoderWeights = plain
        self._load: Callable[[], PreTrainedModel] | None = load
        self._lock = Lock()

    @property
    def weights(self) -> DecoderWeights:
        """What engines read: the weights alone, or the model once there is one."""
        return self._weights

    @property
    def model(self) -> PreTrainedModel:
        """The model, on the device of the weights.

        Raises:
            ModelError: the folder is not what it was when its weights were read (`bad_checkpoint`).
        """
        with self._lock:
            if self._load is not None:
                self._weights = self._load().to(device_of(self._weights))
                self._load = None
            return self._weights

    def to(self, device: torch.device) -> LateModel:
        """Have it computed on a device; returns itself."""
        self._weights = self._weights.to(device)
        return self
