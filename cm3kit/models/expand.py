"""Identity layers between those of a trained decoder, so that it has room for more and computes the same at first.

Block expansion of LLaMA Pro (arXiv:2401.02415, sec. 3.2): a copy of every n-th layer behind it, whose projections onto
the residual stream are zero.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cm3kit.models.timestep import is_timed
from cm3kit_tokenizers.errors import ConfigError, in_a_line

# What transformers calls the projections of attention and of the feed-forward part onto the residual stream.
OUTPUTS = {
    "o_proj", "out_proj", "c_proj", "dense", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "wo", "w2", "output_linear",
}  # fmt: skip
TRIED, TOLERANCE = 24, 1e-4


def expand(model: PreTrainedModel, more: int) -> PreTrainedModel:
    """The model with `more` identity layers, spread evenly; on the device "meta" only its shape.

    Args:
        model: a decoder of transformers whose layers are one list, and which is not conditioned on a time.

    Raises:
        ConfigError: it has no such list, fewer than `more` layers, or would compute something else (`bad_config`).
    """
    if not more:
        return model
    name, count = _layers(model)
    if is_timed(model):
        raise _refused(model, "it is conditioned on a time, layer by layer")
    if more > count:
        raise _refused(model, f"it has {count} layers, and each is copied once at most; {more} are asked for")
    # A copy follows on the last of each of `more` runs of layers.
    copied = {(number + 1) * count // more - 1 for number in range(more)}
    origins = [layer for layer in range(count) for _ in range(2 if layer in copied else 1)]
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(origins)
    for key, value in vars(model.config).items():
        if isinstance(value, list | tuple) and len(value) == count and key.startswith(("layer", "mlp_layer")):
            setattr(config, key, [value[layer] for layer in origins])
    try:
        with torch.random.fork_rng(devices=[]), next(model.parameters()).device:
            larger: PreTrainedModel = type(model)(config)
        larger = larger.to(model.dtype)
        if model.device.type != "meta":
            larger.load_state_dict(_laid_out(model.state_dict(), name, origins))
            _compare(model, larger)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise _refused(model, in_a_line(error)) from error
    return larger.eval()


def _layers(model: PreTrainedModel) -> tuple[str, int]:
    """The path of the list of layers, and how many there are."""
    count = getattr(model.config, "num_hidden_layers", None)
    lists = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if count is None or not lists:
        raise _refused(model, "its layers are not one list")
    return min(lists, key=len), int(count)


def _laid_out(state: Mapping[str, Tensor], name: str, origins: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of the larger model; what a copy would add to the residual stream is zero."""
    out = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
    for place, origin in enumerate(origins):
        is_copy = place > 0 and origins[place - 1] == origin
        before = f"{name}.{origin}."
        for key, value in state.items():
            if key.startswith(before):
                rest = key.removeprefix(before)
                silent = is_copy and OUTPUTS.intersection(rest.split("."))
                out[f"{name}.{place}.{rest}"] = torch.zeros_like(value) if silent else value.clone()
    return out


def _compare(model: PreTrainedModel, larger: PreTrainedModel) -> None:
    """Raise ValueError where logits of some ids differ."""
    rng = torch.Generator().manual_seed(0)
    ids_1T = torch.randint(0, model.config.vocab_size, (1, TRIED), generator=rng)
    with torch.no_grad():
        were_1TV, are_1TV = (
            each.eval()(ids_1T.to(each.device), use_cache=False).logits.float() for each in (model, larger)
        )
    differ = float((were_1TV - are_1TV).abs().max() / were_1TV.abs().max().clamp_min(1e-6))
    if not differ < TOLERANCE:
        raise ValueError(f"its logits would change by {differ:.1g} of the largest")


def _refused(model: PreTrainedModel, why: str) -> ConfigError:
    kind = getattr(model.config, "model_type", "?")
    return ConfigError(
        f"expand cannot add identity layers to this decoder ({kind}): {why}; omit expand.", code="bad_config"
    )
