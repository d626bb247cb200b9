"""The diffusion time t as an input of a decoder of transformers: adaptive layer norm that begins as identity.

Every layer computes, with shift, scale and gate made from t, first for attention and then for the MLP,

    h = norm(x)(1 + scale) + shift,    x = x + (1 + gate) f(h)

as in DiT (Peebles & Xie, arXiv:2212.09748, sec. 3.2), which MeDiM puts into a pretrained decoder
(arXiv:2510.06131, sec. 3.2). There the gate itself starts at zero and switches the pretrained branches off;
here 1 + gate does not, so that a converted model says exactly what it said before.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn.functional import silu

from cm3kit.models.plain import DecoderWeights
from cm3kit_tokenizers.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, SETTINGS = "timestep.safetensors", "timestep.json"
PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
# Times in [0, 1] are spread over [0, 1000], the range that the frequencies were chosen for.
SCALE, PERIOD = 1000.0, 10_000.0


def sinusoid(times: Tensor, width: int) -> Tensor:
    """Embed times (…) in [0, 1] as fp32 (…, width): cosines, then sines, of 1000 t at falling frequencies.

    Frequency i of width / 2 is 10000^(−2i / width) (Vaswani et al., arXiv:1706.03762, sec. 3.5).
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=times.device)
    angles = SCALE * times.float()[..., None] * torch.exp(-math.log(PERIOD) / half * index)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Times to conditioning vectors: sinusoid, then Linear, SiLU, Linear."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.width = width
        self.first = _linear(width, hidden_size)
        self.second = _linear(hidden_size, hidden_size)

    def forward(self, times: Tensor) -> Tensor:
        """Times (B,) or (B, T) in [0, 1] to conditioning (B, 1, D) or (B, T, D)."""
        columns = times[:, None] if times.ndim == 1 else times
        wave = sinusoid(columns, self.width).to(self.first.weight.dtype)
        found: Tensor = self.second(silu(self.first(wave)))
        return found


def add_timestep(model: PreTrainedModel, width: int = 256, seed: int = 0) -> PreTrainedModel:
    """Give a model an input for the time, in place; at first the time changes nothing, to the bit.

    The names of the other weights stay those of transformers. From now on `hidden_states` wants times.

    Args:
        width: numbers in the sinusoidal embedding, even.
        seed: draws the embedding's weights, without touching the global generator.

    Raises:
        ConfigError: the width is not even and positive (`bad_value`), or the model has a time already, or
            layers of another build than norm, attention, norm, MLP (`bad_config`).
    """
    if width < 2 or width % 2:
        raise ConfigError(f"timestep width = {width}: an even number, at least 2.", code="bad_value")
    if is_timed(model):
        raise ConfigError("the model is conditioned on the time already.", code="bad_config")
    layers: Sequence[nn.Module] = getattr(getattr(model, "model", None), "layers", ())
    if not layers or not all(map(_fits, layers)):
        raise ConfigError(
            f"{type(model).__name__} takes no time: its layers are not {', '.join(PARTS)};"
            " use a family such as llama or qwen3.",
            code="bad_config",
        )
    like = next(layers[0].parameters())
    size = model.config.hidden_size
    embedding = TimestepEmbedding(width, size)
    rng = Generator().manual_seed(seed)
    for linear in (embedding.first, embedding.second):
        # Of unit gain, so that small models hear the time as soon as large ones.
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=rng)
    model.timestep = embedding.to(like).train(model.training)
    for layer in layers:
        _condition(layer, _linear(size, 6 * size).to(next(layer.parameters())).train(model.training))
    return model


def is_timed(model: DecoderWeights) -> bool:
    """Whether the model wants times."""
    return isinstance(getattr(model, "timestep", None), TimestepEmbedding)


def time_inputs(model: PreTrainedModel, times: Tensor | None, shape: Sequence[int]) -> dict[str, Tensor]:
    """What a forward pass of `model.model` on ids of `shape` (B, T) takes besides, for times (B,) or (B, T).

    Raises:
        ConfigError: a model with a time gets none, or one without gets some (`bad_config`), or there are not
            B or B × T times (`bad_value`).
    """
    if times is None:
        if is_timed(model):
            raise _no_times()
        return {}
    if not is_timed(model):
        raise ConfigError(
            "times were given to a model that is not conditioned on the time; leave them out, or add_timestep first.",
            code="bad_config",
        )
    if tuple(times.shape) not in ((shape[0],), tuple(shape)):
        raise ConfigError(
            f"times of shape {tuple(times.shape)} for ids of shape {tuple(shape)}:"
            " give one for each row or one for each id.",
            code="bad_value",
        )
    return {"conditioning": model.timestep(times)}


def plain_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that transformers knows, without those of the time."""
    return {name: each for name, each in model.state_dict().items() if "timestep" not in name.split(".")}


def save_timestep(model: PreTrainedModel, folder: Path) -> None:
    """Write the weights of the time and its width beside those of transformers; no time leaves no such files."""
    if not is_timed(model):
        for name in (WEIGHTS, SETTINGS):
            (folder / name).unlink(missing_ok=True)
        return
    save_file({name: each.contiguous() for name, each in _own(model).items()}, folder / WEIGHTS)
    settings = json.dumps({"width": model.timestep.width}, indent=2) + "\n"
    (folder / SETTINGS).write_text(settings, encoding="utf-8")


def load_timestep(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Give the model the time that was saved in a folder, in place; a folder without one changes nothing.

    Raises:
        ModelError: a file cannot be read, or tensors are missing, unexpected, mis-shaped or not finite, with
            the first five named (`bad_checkpoint`).
    """
    if not (folder / WEIGHTS).exists() and not (folder / SETTINGS).exists():
        return model
    try:
        width = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["width"]
        tensors = load_file(folder / WEIGHTS)
        add_timestep(model, int(width))
    except (OSError, RecursionError, ValueError, KeyError, TypeError, SafetensorError, ConfigError) as error:
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{folder}: the time cannot be loaded: {first}", code="bad_checkpoint") from error
    own = _own(model)
    misfits = [f"{name} is missing" for name in sorted(own.keys() - tensors.keys())]
    misfits += [f"{name} is unexpected" for name in sorted(tensors.keys() - own.keys())]
    for name in sorted(own.keys() & tensors.keys()):
        found, expected = tuple(tensors[name].shape), tuple(own[name].shape)
        if found != expected:
            misfits.append(f"{name} is {found}, expected {expected}")
        elif not torch.isfinite(tensors[name]).all():
            misfits.append(f"{name} is not finite")
    refuse_misfits(folder / WEIGHTS, misfits)
    with torch.no_grad():
        for name, each in own.items():
            each.copy_(tensors[name])
    return model


def refuse_misfits(source: object, misfits: Sequence[str]) -> None:
    """Raise a ModelError (`bad_checkpoint`) that names the first five misfits, if there are any."""
    if misfits:
        raise ModelError(
            f"{source} does not fit its configuration ({len(misfits)} tensors): {'; '.join(misfits[:5])}.",
            code="bad_checkpoint",
        )


class _Modulation(threading.local):
    """What the time asks of one layer while that layer runs; of each thread its own."""

    parts: Sequence[Tensor] = ()

    def __reduce__(self) -> tuple[type[_Modulation], tuple[()]]:
        return _Modulation, ()  # a copy of a layer begins at rest


class _Timed(nn.Module):
    """A decoder layer that takes `conditioning` besides.

    The layer's own forward pass runs inside, between hooks. That it is a class and not a wrapper keeps the
    names of weights, and has gradient checkpointing hand the conditioning in again when it recomputes.
    """

    timestep: nn.Linear
    modulation: _Modulation

    def forward(self, *args: Any, conditioning: Tensor | None = None, **options: Any) -> Any:
        if conditioning is None:
            raise _no_times()
        self.modulation.parts = self.timestep(silu(conditioning)).chunk(6, dim=-1)
        try:
            return super().forward(*args, **options)
        finally:
            self.modulation.parts = ()


def _condition(layer: nn.Module, linear: nn.Linear) -> None:
    kind = type(layer)
    # The same name, as sharding finds layers by it.
    layer.__class__ = type(kind.__name__, (_Timed, kind), {"__module__": kind.__module__})
    timed, modulation = cast(_Timed, layer), _Modulation()
    timed.timestep, timed.modulation = linear, modulation
    for place, (norm, branch) in enumerate((PARTS[:2], PARTS[2:])):
        layer.get_submodule(norm).register_forward_hook(partial(_shift_and_scale, modulation, 3 * place))
        layer.get_submodule(branch).register_forward_hook(partial(_gate, modulation, 3 * place + 2))


def _shift_and_scale(
    modulation: _Modulation, first: int, module: nn.Module, _: Any, output: Tensor
) -> Tensor:
    shift, scale = modulation.parts[first : first + 2]
    return output * (1 + scale) + shift


def _gate(modulation: _Modulation, index: int, module: nn.Module, _: Any, output: Any) -> Any:
    gate = 1 + modulation.parts[index]
    if isinstance(
        output, tuple
    ):  # attention returns its weights too, a mixture of experts its router's logits
        return (output[0] * gate, *output[1:])
    return output * gate


def _fits(layer: nn.Module) -> bool:
    """Whether a layer is norm, attention, norm, MLP, and nothing besides that has weights."""
    weighty = {name for name, each in layer.named_children() if any(True for _ in each.parameters())}
    return weighty == set(PARTS)


def _own(model: PreTrainedModel) -> dict[str, Tensor]:
    plain = plain_state(model)
    return {name: each for name, each in model.state_dict().items() if name not in plain}


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A zero linear layer, made without the global generator."""
    linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    for each in linear.parameters():
        nn.init.zeros_(each)
    return linear


def _no_times() -> ConfigError:
    return ConfigError(
        "the model is conditioned on the time, and got none; give one for each row or one for each id.",
        code="bad_config",
    )
