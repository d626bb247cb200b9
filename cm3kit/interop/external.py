"""Public masked-diffusion models as denoisers: LLaDA, Dream, SDAR, or any callable that gives logits.

The three families differ in two things. Dream and DiffuCoder predict a place from the hidden state before
it (arXiv:2508.15487, 2506.20639); LLaDA (arXiv:2502.09992) and SDAR (arXiv:2510.06303) from its own. LLaDA
and Dream look everywhere, SDAR at its own block and those before. None of them looks at the diffusion time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.denoiser import Ask
from cm3kit_tokenizers.errors import ConfigError

Looks = Literal["own", "full", "blocks"]
KNOWN = ("attention_mask", "position_ids", "use_cache", "logits_to_keep")


class ModuleDenoiser:
    """A `Denoiser` around `model(input_ids, …)`, which returns logits (B, T, V) or an object that has them.

    Of `attention_mask`, `position_ids`, `use_cache` and `logits_to_keep`, a model is handed those that its
    signature names. With the last, its head runs only at the places that some row asks for.

    Args:
        model: a module of transformers or any callable; it stays in the mode and on the device that it is.
        mask_id: id of an open slot.
        shift: whether the logits of a place stand at the place before it; the first place takes its own.
        attention: "own" leaves the pattern to the model and masks the padding with (B, T) where there is
            any, as LLaDA expects; "full" lets every place see all others, through a boolean mask
            (B, 1, T, T), as Dream and any causal module of transformers can take; "blocks" hides later blocks.
        block_size: places of a block for "blocks", counted from the first place of the row.
        together: whether rows go through in one padded piece, whose shape does not depend on which are in
            use; otherwise each goes alone and unpadded. By default they go alone on a CPU, where that is
            faster, and a row has the same bits whatever the other rows are.

    Raises:
        ConfigError: "blocks" without a block size, or the reverse (`bad_value`), or the model takes no
            attention mask where one is needed (`bad_config`).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        mask_id: int,
        shift: bool = False,
        attention: Looks = "own",
        block_size: int | None = None,
        together: bool | None = None,
    ) -> None:
        if (attention == "blocks") != (block_size is not None) or (block_size is not None and block_size < 1):
            raise ConfigError(
                f"attention {attention!r} with block size {block_size}: give a positive block size"
                ' with "blocks", and none otherwise.',
                code="bad_value",
            )
        self._model, self._mask, self._shift = model, mask_id, shift
        self._attention, self._block_size = attention, block_size
        self._takes, self._device = _takes(model), _device(model)
        self._together = self._device.type != "cpu" if together is None else together
        if (attention != "own" or together) and "attention_mask" not in self._takes:
            raise ConfigError(
                f"attention {attention!r} with together={together} needs a model that takes attention_mask;"
                ' use "own", and rows alone.',
                code="bad_config",
            )
        self._together = self._together and "attention_mask" in self._takes

    @property
    def mask(self) -> int:
        """The mask id."""
        return self._mask

    def open_block(self, ids_BT: Tensor, lengths: Sequence[int], block: tuple[int, int]) -> None:
        """Nothing is kept between passes."""

    @torch.no_grad()
    def logits(self, ask: Ask) -> list[Tensor]:
        """For each row fp32 logits (M, V) of its M masked positions; (0, 0) where none is requested."""
        sources = [(slots - 1).clamp(min=0) if self._shift else slots for slots in ask.slots]
        ids_BT = ask.ids_BT.to(self._device)
        found = [torch.empty(0, 0) for _ in sources]
        wanted = [row for row, places in enumerate(sources) if len(places)]
        if wanted and self._together:
            scored = self._score(ids_BT, ask.lengths, sources)
            return [each if row in wanted else found[row] for row, each in enumerate(scored)]
        for row in wanted:
            length = ask.lengths[row]
            found[row] = self._score(ids_BT[row : row + 1, :length], (length,), sources[row : row + 1])[0]
        return found

    def _score(self, ids_BT: Tensor, lengths: Sequence[int], sources: Sequence[Tensor]) -> list[Tensor]:
        options = self._options(ids_BT, lengths)
        if "logits_to_keep" in self._takes:
            kept_K: Tensor = torch.unique(torch.cat(list(sources)))
            options["logits_to_keep"] = kept_K.to(self._device)
            sources = [torch.searchsorted(kept_K, each) for each in sources]
        output = self._model(ids_BT, **options)
        logits_BKV: Tensor = output if isinstance(output, Tensor) else output.logits
        pairs = zip(logits_BKV, sources, strict=True)
        return [row_KV[each.to(row_KV.device)].float() for row_KV, each in pairs]

    def _options(self, ids_BT: Tensor, lengths: Sequence[int]) -> dict[str, Any]:
        places_T = torch.arange(ids_BT.shape[1], device=self._device)
        valid_BT = places_T < torch.tensor(lengths, device=self._device)[:, None]
        options: dict[str, Any] = {}
        if "use_cache" in self._takes:
            options["use_cache"] = False
        if "position_ids" in self._takes:
            options["position_ids"] = places_T[None].expand(len(ids_BT), -1)
        if self._attention != "own":
            options["attention_mask"] = self._pattern(valid_BT)
        elif not bool(valid_BT.all()):
            options["attention_mask"] = valid_BT.long()
        return options

    def _pattern(self, valid_BT: Tensor) -> Tensor:
        """Boolean (B, 1, T, T), True where a position may attend."""
        length = valid_BT.shape[1]
        # Padding attends to what other positions do, and an empty row to its first position: no softmax is empty.
        valid_BT = valid_BT | (torch.arange(length, device=valid_BT.device) == 0)
        seen_B1TT = valid_BT[:, None, None, :].expand(-1, 1, length, -1)
        if self._block_size is None:
            return seen_B1TT
        block_T = torch.arange(length, device=valid_BT.device) // self._block_size
        return seen_B1TT & (block_T[:, None] >= block_T[None, :])


def _device(model: Callable[..., Any]) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _takes(model: Callable[..., Any]) -> frozenset[str]:
    """Which of the known inputs a model names."""
    called = model.forward if isinstance(model, torch.nn.Module) else model
    return frozenset(KNOWN) & frozenset(inspect.signature(called).parameters)
