"""Packed rows as runs of documents, for attention that takes lengths instead of a mask.

Where every document looks left only, or at all of itself, nothing else has to be said about who looks where. Then
attention is computed document by document, in time and memory of what documents look at, and not of all pairs of a row:
by PyTorch's variable-length FlashAttention or by xformers on CUDA, and by one call of SDPA for each document on a CPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cm3kit.models.document_runs import Documents as Documents
from cm3kit_tokenizers.installing import install

LONG = 1024  # ids of a document from which on SDPA of a CPU is faster in bf16 than in fp32
ROOM = 64  # ends of documents come in multiples, so that a compiled model meets few shapes
HALVES = torch.bfloat16, torch.float16
_DENSE = ALL_ATTENTION_FUNCTIONS["sdpa"]


def documents_in(documents_BT: Tensor, blocks_BT: Tensor, noisy_BT: Tensor) -> Documents | None:
    """Packed rows on the CPU as runs, or None where `models.attention.block_mask` would say more than runs can.

    Padding, of which nobody wants to know what it sees, is a run like others.
    """
    rows, length = documents_BT.shape
    starts_BT = torch.ones(rows, length, dtype=torch.bool)
    starts_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    starts_M = starts_BT.flatten()
    if not len(starts_M):
        return None
    run_M = starts_M.cumsum(0) - 1
    blocks_M, noisy_M = blocks_BT.flatten(), noisy_BT.flatten().bool()
    step_M = torch.where(starts_M, 1, blocks_M - blocks_M.roll(1))
    left_M = ~noisy_M & (step_M > 0)
    whole_M = noisy_M & (starts_M | (step_M == 0))
    count = int(run_M[-1]) + 1
    bad_left_R, bad_whole_R = (torch.bincount(run_M[~fine], minlength=count) for fine in (left_M, whole_M))
    padding_R = documents_BT.flatten()[starts_M] == 0
    causal_R = bad_left_R == 0
    if not bool((causal_R | (bad_whole_R == 0) | padding_R).all()) or _torn(documents_BT.flatten()[starts_M]):
        return None
    # Padding goes with the others, where kernels want all alike.
    left = bool(causal_R[~padding_R].all())
    causal_R = torch.where(padding_R, left, causal_R)
    lengths_R = torch.bincount(run_M, minlength=count)
    ends_N = pad(lengths_R.cumsum(0), (1, 0)).int()
    room = -(-len(ends_N) // ROOM) * ROOM - len(ends_N)
    ends_N = torch.cat([ends_N, ends_N[-1:].expand(room)])
    return Documents(tuple(lengths_R.tolist()), tuple(causal_R.tolist()), left, ends_N, length)


def even_runs(count: int, length: int) -> Documents:
    """So many positions as runs of a length that look left."""
    lengths = [length] * (count // length) + [count % length] * (count % length > 0)
    ends_N = torch.tensor([0, *lengths]).cumsum(0).int()
    return Documents(tuple(lengths), (True,) * len(lengths), True, ends_N, length)


def _torn(documents_R: Tensor) -> bool:
    """Whether any document is in more than one run."""
    real_R = documents_R[documents_R > 0]
    return len(torch.unique(real_R)) < len(real_R)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, documents: Documents, **options: Any
) -> tuple[Tensor, None]:
    """Attention of transformers (query (B, H, T, E), keys and values of fewer heads maybe) within documents.

    Returns:
        (B, T, H, E), as attention functions of transformers do.
    """
    rows, _, length, _ = query.shape
    kernels: dict[str, Callable[..., Tensor]] = {
        "sdpa": _one_by_one,
        "varlen": _varlen,
        "xformers": _xformers,
    }
    kind = query.device.type
    if documents.kernel != "sdpa" and torch.is_autocast_enabled(kind):
        # Autocast knows SDPA and not these, and where norms and rotations are in fp32 the three are not of one type.
        query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
    flat = [each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)]
    found_MHE = kernels[documents.kernel](module, *flat, documents, **options)
    return found_MHE.view(rows, length, *found_MHE.shape[1:]), None


def _one_by_one(
    module: nn.Module, query_MHE: Tensor, key_MHE: Tensor, value_MHE: Tensor, documents: Documents, **options: Any
) -> Tensor:  # fmt: skip
    # A CPU prepares products of bf16 anew for every length that it has not met, which takes longer than they do.
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    # Splitting, unlike slicing, has gradients that are put together once.
    lengths, three = list(documents.lengths), (query_MHE, key_MHE, value_MHE)
    parts = [torch.split(each.float().transpose(0, 1)[None], lengths, 2) for each in three]
    found = []
    with torch.autocast("cpu", enabled=False):
        for *of_one, causal, length in zip(*parts, documents.causal, lengths, strict=True):
            of_one = [each.to(low) for each in of_one] if length >= LONG else of_one
            found.append(_DENSE(module, *of_one, None, **{**options, "is_causal": causal})[0])
    return torch.cat(found, 1).squeeze(0).to(value_MHE.dtype)


def _varlen(
    module: nn.Module, query_MHE: Tensor, key_MHE: Tensor, value_MHE: Tensor, documents: Documents,
    scaling: float | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    from torch.nn.attention.varlen import varlen_attn

    key_MHE, value_MHE = (_repeated(each, query_MHE) for each in (key_MHE, value_MHE))
    found: Any = varlen_attn(
        query_MHE, key_MHE, value_MHE, documents.ends_N, documents.ends_N, documents.longest, documents.longest,
        scale=scaling, **_looks(documents.left),
    )  # fmt: skip
    return found  # type: ignore[no-any-return]


@lru_cache
def _looks(causal: bool) -> dict[str, Any]:
    """How `varlen_attn` of this version of PyTorch is told to look left only."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    if "window_size" in known:
        return {"window_size": (-1, 0 if causal else -1)}
    return {"is_causal": causal}


def _xformers(
    module: nn.Module, query_MHE: Tensor, key_MHE: Tensor, value_MHE: Tensor, documents: Documents,
    scaling: float | None = None, dropout: float = 0.0, **options: Any,
) -> Tensor:  # fmt: skip
    from xformers.ops import memory_efficient_attention

    three = [_repeated(each, query_MHE)[None] for each in (query_MHE, key_MHE, value_MHE)]
    found: Tensor = memory_efficient_attention(*three, attn_bias=documents.bias, p=dropout, scale=scaling)[0]
    return found


def _repeated(each_MHE: Tensor, query_MHE: Tensor) -> Tensor:
    """Keys or values for every head of the queries."""
    times = query_MHE.shape[1] // each_MHE.shape[1]
    return each_MHE if times == 1 else each_MHE.repeat_interleave(times, 1)


@lru_cache
def why_no_varlen(device: torch.device) -> str | None:
    """What keeps PyTorch's variable-length attention from running on a device, forward and backward, if anything."""
    return _tried("varlen", device)


@lru_cache
def why_no_xformers(device: torch.device) -> str | None:
    """The same of xformers."""
    if find_spec("xformers") is None:
        return f"xformers is not installed ({install('xformers')})"
    if device.type != "cuda":
        return f"xformers has no kernel on {device.type}"
    return _tried("xformers", device)


def _tried(kernel: str, device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"there is no kernel on {device.type}"
    try:
        ends_N = torch.tensor([0, 5, 16], dtype=torch.int32)
        runs = Documents((5, 11), (True, True), True, ends_N, 16).on(device, kernel)
        three = [
            torch.ones(1, 2, 16, 64, dtype=HALVES[0], device=device, requires_grad=True) for _ in range(3)
        ]
        with torch.enable_grad():
            attend(nn.Module(), three[0], three[1], three[2], runs)[0].sum().backward()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
    except (ImportError, NotImplementedError, RuntimeError, TypeError, AttributeError) as error:
        return f"{kernel} does not run here ({(str(error) or type(error).__name__).splitlines()[0][:120]})"
    return None
