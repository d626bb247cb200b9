"""Decoder-only transformers from Hugging Face, with the attention pattern as an argument.

The pattern of a packed row is block-diagonal and causal, so that documents in it do not see each other
(Krell et al., arXiv:2107.02027, sec. 3.1).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cm3kit.config import Settings
from cm3kit.models.document_runs import Documents
from cm3kit.models.embeddings import grow_vocabulary
from cm3kit.models.families import configured, family_of, read_config, refuse_unknown
from cm3kit.models.gguf import gguf_file, read_gguf
from cm3kit.models.quantized import Format, quantization
from cm3kit.models.sizes import hold_configuration
from cm3kit.models.timestep import load_timestep, plain_state, refuse_misfits, save_timestep, time_inputs
from cm3kit.registry import Registry
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, ModelError, in_a_line

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

Attention: TypeAlias = "Literal['causal', 'full'] | Tensor | BlockMask | Documents"

Family: TypeAlias = "tuple[Callable[..., Any], Callable[[Any], PreTrainedModel]]"
"""Makes a configuration from Llama's keywords, and a causal language model of transformers from that."""


def _late(name: str) -> Callable[..., Any]:
    """A class of transformers, which takes long to import, where it is called."""

    def make(*args: Any, **options: Any) -> Any:
        return getattr(import_module("transformers"), name)(*args, **options)

    return make


families: Registry[Family] = Registry("backbone family")
families("llama")((_late("LlamaConfig"), _late("LlamaForCausalLM")))
families("qwen3")((_late("Qwen3Config"), _late("Qwen3ForCausalLM")))

SHARD, LARGE = "15MB", "4GB"  # of a file of weights, and of one of a public model


class BackboneConfig(Settings):
    """Shape of a backbone that is made from nothing.

    `dropout` acts on embeddings, attention weights and both residual branches. `std` is the standard
    deviation of the initial weights.
    """

    family: str = "llama"
    hidden_size: int = Field(default=256, ge=8)
    layers: int = Field(default=8, ge=1)
    heads: int = Field(default=4, ge=1)
    kv_heads: int = Field(default=4, ge=1)
    intermediate_size: int = Field(default=704, ge=8)
    max_positions: int = Field(default=1024, ge=8)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rope_theta: float = Field(default=10_000.0, gt=0)
    tie_embeddings: bool = True
    std: float = Field(default=0.02, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _heads_divide(self) -> BackboneConfig:
        if self.hidden_size % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                "hidden_size must be an even multiple of heads, and heads a multiple of kv_heads"
            )
        return self


def build_backbone(config: BackboneConfig, vocab_size: int) -> PreTrainedModel:
    """Make a model with fresh weights, drawn from `config.seed` without touching the global generator.

    Returns:
        A causal language model of transformers in fp32 and in eval mode.
    """
    make_config, make_model = families[config.family]
    hf_config = make_config(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.hidden_size // config.heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_positions,
        attention_dropout=config.dropout,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=config.std,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = make_model(hf_config)
    if config.dropout:
        _add_dropout(model, config.dropout)
    return model.eval()


def _add_dropout(model: PreTrainedModel, rate: float) -> None:
    # Hooks keep the names of the weights those of transformers, which wrapper modules would change.
    targets: list[nn.Module] = [model.get_input_embeddings()]
    for layer in model.model.layers:
        targets += [layer.self_attn.o_proj, layer.mlp.down_proj]
    for target in targets:
        target.register_forward_hook(partial(_drop, rate))


def _drop(rate: float, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return nn.functional.dropout(output, rate, module.training)


def load_backbone(
    source: str | Path, vocab_size: int, mean: bool = False, dtype: torch.dtype | Literal["auto"] = torch.float32,
    quantize: Format | None = None,
) -> PreTrainedModel:  # fmt: skip
    """Load a causal language model from a folder or by its hub id, in eval mode.

    Embeddings grow to `vocab_size` if the saved vocabulary is smaller, with `mean` by rows that are the mean
    of the others; a larger one stays as it is. A folder that holds a time too (`models.timestep`) gives a
    model that is conditioned on it. Remote code is never run and pickled weights are never read. Folders of
    families that transformers does not know by itself (`models.families`) are read as the class that computes the same.

    Args:
        dtype: of the weights; "auto" is that of the files.
        quantize: bring the layers' weights into few bits while they are read (`models.quantized`).

    Raises:
        ConfigError: that format cannot be had here.
        ModelError: nothing is there (`unknown_model`), or tensors are missing, unexpected or mis-shaped,
            with the first five named (`bad_checkpoint`).
    """
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json; name a folder written by save_pretrained.", code="unknown_model"
        )
    refuse_unknown(source)
    hold_configuration(folder, family=family_of(source))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = _read(source, dtype, quantize)
        grow_vocabulary(model, vocab_size, mean)
    return load_timestep(model, folder).eval()


def save_backbone(model: PreTrainedModel, folder: Path, half: bool = False, shard: str = SHARD) -> None:
    """Write config.json and model.safetensors, in fp16 with `half`; `load_backbone` reads them as fp32.

    What a time adds goes to files of its own, so that transformers opens the folder as it does any other.
    """
    saved = copy.deepcopy(model).half() if half else model
    with _quiet():
        saved.save_pretrained(folder, state_dict=plain_state(saved), max_shard_size=shard)
    save_timestep(saved, Path(folder))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and warnings of transformers, whose lines would mix with ours; what goes wrong is an error."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read(
    source: str | Path, dtype: torch.dtype | Literal["auto"], quantize: Format | None
) -> PreTrainedModel:
    bad = "bad_checkpoint" if Path(source).exists() else "unknown_model"
    more = {} if quantize is None else {"quantization_config": quantization(quantize)}
    try:
        with _quiet():
            model, report = _open(str(source), "sdpa", dtype, more)
    except Cm3kitError:
        raise
    except Exception as error:
        # transformers and huggingface_hub raise a dozen unrelated types here.
        raise ModelError(f"{source} cannot be loaded as a backbone: {in_a_line(error)}", code=bad) from error
    misfits = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    misfits += [f"{name} is unexpected" for name in sorted(report["unexpected_keys"])]
    misfits += [
        f"{name} is {tuple(found)}, expected {tuple(expected)}"
        for name, found, expected in sorted(report["mismatched_keys"])
    ]
    misfits += [f"{name} is not finite" for name, each in model.named_parameters() if not _finite(each)]
    refuse_misfits(source, misfits)
    return model


def _open(
    source: str, attention: str, dtype: Any, more: Mapping[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Read by transformers, shard by shard, with SDPA or, in families that have none, its plain attention."""
    how: dict[str, Any] = {
        "dtype": dtype, "attn_implementation": attention, "use_safetensors": True, "ignore_mismatched_sizes": True,
        "output_loading_info": True, **more,
    }  # fmt: skip
    if (file := gguf_file(source)) is not None:
        if more:
            raise ConfigError(
                f"{source} has its own number format; give a folder of transformers.", code="bad_value"
            )
        floats = torch.float32 if dtype == "auto" else dtype
        return read_gguf(file, attention, floats), {
            "missing_keys": (),
            "unexpected_keys": (),
            "mismatched_keys": (),
        }
    if (family := family_of(source)) is not None:
        raw = read_config(Path(source)) or {}
        how |= {"config": configured(family, raw), "key_mapping": dict(family.renamed)}
        if "quantization_config" in raw:
            how["config"].quantization_config = raw["quantization_config"]
        model, report = family.architecture.from_pretrained(source, **how)
        # What is saved has the names of the class, and not those of the family.
        model._weight_conversions = None
        return model, report
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, **how)
    except ValueError as error:
        if attention == "eager" or "scaled_dot_product_attention" not in str(error):
            raise
        return _open(source, "eager", dtype, more)
    return model, report


def _finite(tensor: Tensor) -> bool:
    # Weights in few bits have classes of their own, and no numbers that are not finite.
    return type(tensor) not in (Tensor, nn.Parameter) or bool(torch.isfinite(tensor).all())


def hidden_states(
    model: PreTrainedModel,
    ids_BT: Tensor,
    attention: Attention = "causal",
    position_ids_BT: Tensor | None = None,
    times: Tensor | None = None,
) -> Tensor:
    """Last hidden states after the final norm, (B, T, D); `head` turns any selection of them into logits.

    Args:
        attention: "causal", "full", or a boolean mask (B or 1, 1, T, T), True where a position may look, which a
            model that `models.flex.use_flex` has seen takes as a `BlockMask` or as `Documents` too.
        times: diffusion times in [0, 1], (B,) or (B, T), of a model that is conditioned on them.

    Raises:
        ConfigError: times are missing where the model wants them, or given where it does not (`bad_config`).
    """
    options: dict[str, Any] = {**time_inputs(model, times, ids_BT.shape)}
    if position_ids_BT is None:
        position_ids_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
    if isinstance(attention, Documents):
        # A mask of four dimensions is what keeps transformers from making one.
        options |= {"documents": attention, "attention_mask": ids_BT.new_ones(1, 1, 1, 1, dtype=torch.bool)}
    elif not isinstance(attention, str):
        options["attention_mask"] = mask_for(model, attention)
    elif attention == "full" and _takes_is_causal(model):
        options["is_causal"] = False
    elif attention == "full":
        length = ids_BT.shape[1]
        seen_11TT = torch.ones(1, 1, length, length, dtype=torch.bool, device=ids_BT.device)
        options["attention_mask"] = mask_for(model, seen_11TT)
    output = model.base_model(input_ids=ids_BT, position_ids=position_ids_BT, use_cache=False, **options)
    found: Tensor = output.last_hidden_state
    return found


def mask_for(model: PreTrainedModel, mask: Tensor | BlockMask) -> Tensor | BlockMask:
    """A boolean mask as this model's attention takes it: where there is no SDPA it is added to the scores."""
    if not isinstance(mask, Tensor) or model.config._attn_implementation != "eager":
        return mask
    dtype = next(model.parameters()).dtype
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return added.masked_fill_(~mask, torch.finfo(dtype).min)


def _takes_is_causal(model: PreTrainedModel) -> bool:
    """Whether it can be told to look both ways without a mask, which is faster.

    Some families of transformers do not read `is_causal`, and layers that see a window make a causal mask of their
    own; both would stay causal and say nothing.
    """
    return model.config.model_type in families and getattr(model.config, "sliding_window", None) is None


def head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits (…, V) of hidden states (…, D), of all positions or of those alone that have a loss.

    Families that scale their logits (Granite, Cohere, Falcon-H1) or cap them (Gemma 2) say so in their configuration.
    """
    logits: Tensor = model.get_output_embeddings()(hidden)
    divisor, factor, cap = logit_terms(model)
    if divisor:
        logits = logits / divisor
    if factor:
        logits = logits * factor
    return torch.tanh(logits / cap) * cap if cap else logits


def logit_terms(model: PreTrainedModel) -> tuple[float | None, float | None, float | None]:
    """What a family divides its logits by, multiplies them by, and caps them at, as far as it does."""
    config = model.config
    factor = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    cap = getattr(config, "final_logit_softcapping", None)
    return getattr(config, "logits_scaling", None) or None, factor or None, cap or None


def forward(
    model: PreTrainedModel,
    ids_BT: Tensor,
    attention: Attention = "causal",
    position_ids_BT: Tensor | None = None,
    times: Tensor | None = None,
) -> Tensor:
    """Logits (B, T, V) of ids (B, T) under an attention pattern; see `hidden_states`."""
    return head(model, hidden_states(model, ids_BT, attention, position_ids_BT, times))
