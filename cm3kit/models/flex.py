"""FlexAttention (arXiv:2412.05496): tiles of a mask where nobody looks are left out, and the mask is never written out.

transformers calls attention by a name that stands in a model's configuration. Under the name that `use_flex` gives it
the kind of mask decides: a `BlockMask` goes to FlexAttention, any other mask, or none, where it has always gone.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cm3kit.models.attention import flex_mask
from cm3kit.models.backbone import hidden_states
from cm3kit.models.timestep import is_timed
from cm3kit_tokenizers.errors import ConfigError

Packing = Literal["auto", "dense", "flex"]
NAME, TRIAL = "cm3kit-packed", "cm3kit-trial"
NARROWEST = 16  # the kernel's products are of at least so many numbers
_DENSE, _FLEX = ALL_ATTENTION_FUNCTIONS["sdpa"], ALL_ATTENTION_FUNCTIONS["flex_attention"]


def prepare(packing: Packing, model: PreTrainedModel) -> bool:
    """Whether masks may come to be FlexAttention's, for which a model is made ready in place.

    Raises:
        ConfigError: `flex` is asked of a model that cannot (`bad_config`).
    """
    if packing == "dense" or (packing == "auto" and not torch.cuda.is_available()):
        return False
    reason = why_not(model)
    if reason is None:
        use_flex(model)
    elif packing == "flex":
        raise _refusal(reason)
    return reason is None


def flexes_on(device: torch.device, packing: Packing) -> bool:
    """Whether masks of a model that is ready are FlexAttention's on a device: `auto` says so on CUDA.

    Raises:
        ConfigError: `flex` is asked for where training cannot have it (`bad_config`).
    """
    reason = None
    if device.type != "cuda":
        learns = device.type != "cpu" or torch.is_grad_enabled() or packing == "auto"
        reason = f"FlexAttention has no backward pass on {device.type}" if learns else None
    elif find_spec("triton") is None:
        reason = "FlexAttention needs Triton, which is not installed"
    if packing == "flex" and reason is not None:
        raise _refusal(reason)
    return reason is None


def _refusal(reason: str) -> ConfigError:
    return ConfigError(f"packing = flex: {reason}; leave it out, and masks are dense.", code="bad_config")


def why_not(model: PreTrainedModel) -> str | None:
    """What keeps a model from FlexAttention in the mode that it is in, if anything does: it is tried out on six ids."""
    own = f"{type(model).__name__} does not hand its attention such masks"
    before = model.config._attn_implementation
    if not model._supports_flex_attn or before not in ("sdpa", NAME):
        return own
    met: list[tuple[bool, int, float]] = []

    def note(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any,
        dropout: float = 0.0, **options: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        met.append((isinstance(attention_mask, BlockMask), query.shape[-1], dropout))
        dense: tuple[Tensor, None] = _DENSE(module, query, key, value, None, **options)
        return dense

    ids_BT = torch.zeros(1, 6, dtype=torch.long, device=model.device)
    times = torch.zeros(1, device=model.device) if is_timed(model) else None
    try:
        ALL_ATTENTION_FUNCTIONS.register(TRIAL, note)
        model.set_attn_implementation(TRIAL)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            hidden_states(model, ids_BT, flex_mask(ids_BT + 1, ids_BT, ids_BT), None, times)
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError):
        return own
    finally:
        model.set_attn_implementation(before)
    if len(met) < model.config.num_hidden_layers or not all(arrived for arrived, _, _ in met):
        return own
    if rate := max(dropout for _, _, dropout in met):
        return f"it knows no dropout of attention weights, and this model's is {rate}"
    width = min(width for _, width, _ in met)
    return None if width >= NARROWEST else f"heads are {NARROWEST} numbers wide or more, and these {width}"


def use_flex(model: PreTrainedModel) -> None:
    """Let a model take a `BlockMask`, in place; what it does with other masks, or none, stays as it is."""
    if model.config._attn_implementation != NAME:
        ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(NAME)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    if not isinstance(attention_mask, BlockMask):
        dense: tuple[Tensor, None] = _DENSE(module, query, key, value, attention_mask, **options)
        return dense
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # Autocast knows SDPA and not this, and where norms and rotations are in fp32 the three are not of one type.
        query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
    found: tuple[Tensor, Tensor | None] = _FLEX(module, query, key, value, attention_mask, **options)
    return found
