"""FlexAttention (arXiv:2412.05496): tiles of a mask where nobody looks are left out, and the mask is never written out.

transformers calls attention by a name that stands in a model's configuration. Under the name that `use_flex` gives it
the kind of mask decides: a `BlockMask` goes to FlexAttention, `Documents` to kernels for those, and any other mask, or
none, where it has always gone.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from cm3kit.models.documents import Documents, attend, documents_in
from cm3kit.models.timestep import is_timed

NAME, TRIAL = "cm3kit-packed", "cm3kit-trial"
NARROWEST = 16  # the kernel's products are of at least so many numbers
_DENSE, _FLEX = ALL_ATTENTION_FUNCTIONS["sdpa"], ALL_ATTENTION_FUNCTIONS["flex_attention"]


@dataclass(frozen=True, slots=True)
class Met:
    """What reached one attention layer of a trial: the mask asked for or another, numbers of a head, dropout."""

    arrived: bool
    width: int
    dropout: float


def why_no_kernel(device: torch.device) -> str | None:
    """What keeps FlexAttention from training on a device, if anything does."""
    if device.type != "cuda":
        learns = device.type != "cpu" or torch.is_grad_enabled()
        return f"FlexAttention has no backward pass on {device.type}" if learns else None
    return None if find_spec("triton") is not None else "FlexAttention needs Triton, which is not installed"


def why_not(model: PreTrainedModel) -> str | None:
    """What keeps a model from FlexAttention in the mode that it is in, if anything does: it is tried out on six ids."""
    met = tried(model, "flex")
    if met is None:
        return f"{type(model).__name__} does not hand its attention such masks"
    if rate := max(each.dropout for each in met):
        return f"it knows no dropout of attention weights, and this model's is {rate}"
    width = min(each.width for each in met)
    return None if width >= NARROWEST else f"heads are {NARROWEST} numbers wide or more, and these {width}"


def tried(model: PreTrainedModel, kind: Literal["flex", "documents"]) -> list[Met] | None:
    """What reaches each attention layer of a model that is given a mask of a kind; None if it does not reach all."""
    before = model.config._attn_implementation
    if not model._supports_flex_attn or before not in ("sdpa", NAME):
        return None
    met: list[Met] = []

    def note(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any,
        dropout: float = 0.0, documents: Documents | None = None, **options: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        arrived = isinstance(attention_mask, BlockMask) if kind == "flex" else documents is not None
        met.append(Met(arrived, query.shape[-1], dropout))
        dense: tuple[Tensor, None] = _DENSE(module, query, key, value, None, **options)
        return dense

    ids_BT = torch.zeros(1, 6, dtype=torch.long)
    mask: Any = documents_in(ids_BT + 1, torch.arange(6)[None], ids_BT)
    if kind == "flex":
        mask = flex_mask(*(each.to(model.device) for each in (ids_BT + 1, ids_BT, ids_BT)))
    times = torch.zeros(1, device=model.device) if is_timed(model) else None
    try:
        ALL_ATTENTION_FUNCTIONS.register(TRIAL, note)
        model.set_attn_implementation(TRIAL)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            hidden_states(model, ids_BT.to(model.device), mask, None, times)
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError):
        return None
    finally:
        model.set_attn_implementation(before)
    return met if len(met) >= model.config.num_hidden_layers and all(each.arrived for each in met) else None


def use_flex(model: PreTrainedModel) -> None:
    """Let a model take a `BlockMask` or `Documents`, in place; what it does with other masks stays as it is."""
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
    documents: Documents | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    if documents is not None:
        return attend(module, query, key, value, documents, **options)
    if not isinstance(attention_mask, BlockMask):
        dense: tuple[Tensor, None] = _DENSE(module, query, key, value, attention_mask, **options)
        return dense
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # Autocast knows SDPA and not this, and where norms and rotations are in fp32 the three are not of one type.
        query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
    found: tuple[Tensor, Tensor | None] = _FLEX(module, query, key, value, attention_mask, **options)
    return found
