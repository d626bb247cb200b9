"""How documents side by side in a row are kept apart: which kernel attention uses, by device, model, row and objective.

What decides is measured where it could be (docs/training.md). On a CPU one call of SDPA for each document took less
time than a dense mask. On an H200, with rows of 1,024, a dense mask was 3.8 times as fast as FlexAttention in a model
that is compiled; where rows are long it must come to be slower, as pairs grow with their square.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from cm3kit.models.attention import block_mask, flex_mask
from cm3kit.models.backbone import Attention
from cm3kit.models.documents import HALVES, Documents, documents_in, even_runs, why_no_varlen, why_no_xformers
from cm3kit.models.documents import LONG as LONG_RUN
from cm3kit.models.flex import tried, use_flex, why_no_kernel, why_not
from cm3kit_tokenizers.errors import ConfigError

Packing = Literal["auto", "dense", "documents", "flex", "xformers"]
LONG = 8192  # ids of a row from which on `auto` prefers FlexAttention to a dense mask: extrapolated
WIDEST = 256  # numbers of a head in kernels for documents
Numbers = tuple[Tensor, Tensor, Tensor]


class Packer:
    """Makes the attention mask of packed rows, of the kind that a setting and the place allow.

    Args:
        packing: `dense`, `documents` and `flex` are what they say, or an error; `xformers` is that, or a line that says
            why not and `auto`; that is documents where the objective, the model and the device allow, else flex for
            long rows on CUDA, else dense.
        model: is made ready in place.
        compiled: whether the model is.

    Raises:
        ConfigError: the model cannot what is asked for (`bad_config`).
    """

    def __init__(self, packing: Packing, model: PreTrainedModel, compiled: bool) -> None:
        self.packing, self._compiled, self._told = packing, compiled, False
        self._reasons: dict[str, str | None] = {}
        if packing == "flex" or (packing in ("auto", "xformers") and torch.cuda.is_available()):
            self._reasons["flex"] = why_not(model)
        if packing in ("auto", "documents", "xformers"):
            met = tried(model, "documents")
            own = f"{type(model).__name__} does not hand its attention such masks"
            self._reasons["documents"] = None if met else own
            self._dropout = max((each.dropout for each in met or ()), default=0.0)
            self._width = max((each.width for each in met or ()), default=0)
        if (reason := self._reasons.get(packing)) is not None:
            raise self._refusal(reason)
        if None in self._reasons.values():
            use_flex(model)

    def mask(
        self, batch: Numbers, there: Numbers, unseen_BT: Tensor | None = None
    ) -> Tensor | BlockMask | Documents:
        """Who looks where in packed rows, as `models.attention.block_mask` says it.

        Args:
            batch: documents, blocks and noise (B, T) on the CPU, and `there` on the model's device.

        Raises:
            ConfigError: what is asked for cannot be had on this device, or for these rows (`bad_config`).
        """
        device = there[0].device
        runs, reason = self._runs(batch, device, unseen_BT is not None)
        if runs is not None:
            return runs
        if self.packing == "documents":
            raise self._refusal(reason)
        if self.packing == "xformers":
            self._tell(reason)
        flex = self._flexes(device, there[0].shape[1])
        return (flex_mask if flex else block_mask)(*there, unseen_BT=unseen_BT)

    def largest(self, shape: tuple[int, int], device: torch.device) -> list[Attention]:
        """Masks of rows (B, T) on the CPU that need no less memory than those of such rows on a device.

        Whether documents are runs depends on what is drawn. What is neither that nor a mask of all pairs holds what
        attention without a mask does, and a few numbers.
        """
        rows, length = shape
        found: list[Attention] = []
        if self._reasons.get("documents", "") is None and device.type == "cpu" and not self._compiled:
            found.append(even_runs(rows * length, min(length, LONG_RUN - 1)))
        if self._flexes(device, length) or (self.packing == "documents" and not found):
            found.append("causal")
        elif self.packing != "documents":
            found.append(torch.ones(rows, 1, length, length, dtype=torch.bool))
        return found

    def _flexes(self, device: torch.device, length: int) -> bool:
        if "flex" not in self._reasons or self._reasons["flex"] is not None:
            return False
        reason = why_no_kernel(device)
        if self.packing == "flex" and reason is not None:
            raise self._refusal(reason)
        return reason is None and (self.packing == "flex" or (device.type == "cuda" and length >= LONG))

    def _runs(self, batch: Numbers, device: torch.device, unseen: bool) -> tuple[Documents | None, str]:
        """Rows as runs of documents, or why they cannot be."""
        if self._reasons.get("documents", "") is not None:
            return None, ""
        kernel, reason = self._kernel(device)
        runs = documents_in(*batch) if kernel is not None and not unseen else None
        if kernel is None:
            return None, reason
        if runs is None or (kernel != "sdpa" and not runs.alike):
            return None, "documents of these rows look neither left only nor at all of themselves"
        return runs.on(device, kernel), ""

    def _kernel(self, device: torch.device) -> tuple[str | None, str]:
        """The kernel for documents on a device, or None and why there is none."""
        if self.packing == "xformers":
            if (reason := why_no_xformers(device)) is None:
                return "xformers", ""
            self._tell(reason)
        if device.type == "cpu":
            # Calls that follow the lengths of documents would have a model compiled again and again.
            return ("sdpa" if not self._compiled else None), "the model is compiled, for a CPU"
        reason = self._why_no_halves(device) or why_no_varlen(device)
        return ("varlen" if reason is None else None), reason or ""

    def _tell(self, reason: str) -> None:
        """Say once that it is not xformers that is used."""
        if not self._told:
            self._told = True
            warnings.warn(f"packing = xformers: {reason}; attention is PyTorch's", UserWarning, stacklevel=2)

    def _why_no_halves(self, device: torch.device) -> str | None:
        kind = device.type
        halves = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) in HALVES
        if not halves:
            return "the kernel wants bf16, and training is in fp32"
        if self._dropout:
            return f"it knows no dropout of attention weights, and this model's is {self._dropout}"
        fits = self._width <= WIDEST and self._width % 8 == 0
        return None if fits else f"heads are of {self._width} numbers, not of a multiple of 8 up to {WIDEST}"

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(
            f"packing = {self.packing}: {reason}; leave it out, and what is there is used.", code="bad_config"
        )
