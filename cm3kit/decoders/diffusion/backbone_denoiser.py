"""A transformers model as a denoiser: full attention over the row's own ids, the head on what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.denoiser import Ask
from cm3kit.decoders.fast_llama import LeanEngine, supports
from cm3kit.decoders.settings import Precision
from cm3kit.models.attention import row_mask
from cm3kit.models.backbone import head, hidden_states
from cm3kit.models.plain import DecoderWeights, device_of
from cm3kit.models.timestep import is_timed
from cm3kit_tokenizers.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Hidden = Callable[[Tensor, Sequence[int], Sequence[float]], Tensor]
"""`hidden(ids_BT, lengths, times)`: last hidden states (B, T, D) after the final norm."""


class _Body(Protocol):
    def encode(self, ids_BT: Tensor, lengths: Sequence[int], times: Sequence[float]) -> Tensor: ...

    def logits_in(
        self, rows: Sequence[Tensor], times: Sequence[float], places: Sequence[Tensor]
    ) -> list[Tensor]: ...

    def logits_of(self, hidden_MD: Tensor) -> Tensor: ...


class BackboneDenoiser:
    """Scores slots with a backbone. Positions count from the row's first id, and nothing attends to padding.

    On a CPU each row has what it has alone, without padding, and rows that want nothing are not computed; elsewhere
    the batch goes through in one piece, whose shape does not depend on which rows are in use.

    Args:
        backbone: a model of transformers; `LeanEngine` reads its weights here where it can.
        mask: id of an open slot.
        vocab_size: logits are given for this many ids, from 0.
        shift: whether the model scores place i + 1 at place i, as those made from causal models do
            (Dream, DiffuCoder); its first place must then be given.
        unseen: whether the model was trained with masked positions that no other position attends to (`row_mask`).
        hidden: computes hidden states instead.
        lean: use `LeanEngine` where it can; without, weights that change later are seen.
        together: whether to compute the batch in one piece.
        precision: number format of the weights, of `LeanEngine` alone.

    Raises:
        ConfigError: a format other than fp32 of a model that only its module computes (`bad_value`).
    """

    def __init__(
        self,
        backbone: DecoderWeights,
        mask: int,
        vocab_size: int,
        *,
        shift: bool = False,
        unseen: bool = False,
        hidden: Hidden | None = None,
        lean: bool = True,
        together: bool | None = None,
        precision: Precision = "fp32",
    ) -> None:
        self._mask, self._shift, self._vocab_size = mask, int(shift), vocab_size
        self._window = int(backbone.config.max_position_embeddings)
        self._device = device_of(backbone)
        self._together = self._device.type != "cpu" if together is None else together
        lean = lean and hidden is None and supports(backbone)
        apart = mask if unseen else None
        if not lean:
            refuse_format(precision, backbone)
        body = (
            _Lean(backbone, vocab_size, apart, precision)
            if lean
            else _Module(backbone, vocab_size, apart, hidden)
        )
        self._body: _Body = body

    @property
    def mask(self) -> int:
        """The mask id."""
        return self._mask

    def open_block(self, ids_BT: Tensor, lengths: Sequence[int], block: tuple[int, int]) -> None:
        """Nothing is kept between passes."""

    def logits(self, ask: Ask) -> list[Tensor]:
        """For each row fp32 logits (M, V) of what belongs at its slots.

        Raises:
            ConfigError: a row is longer than the model's window (`too_long`), or a shifted model is asked
                for its first place (`bad_value`).
        """
        self._check(ask)
        if self._together:
            return self._all_at_once(ask)
        return self._apart(ask)

    def _check(self, ask: Ask) -> None:
        if max(ask.lengths, default=0) > self._window:
            raise ConfigError(
                f"The page takes {max(ask.lengths)} ids, the model's window holds {self._window};"
                " shorten the page or ask for less.",
                code="too_long",
            )
        if self._shift and any(len(slots) and int(slots[0]) == 0 for slots in ask.slots):
            raise ConfigError(
                "This model scores each place at the one before, and the first has none;"
                " put an id before what is to be written.",
                code="bad_value",
            )

    def _apart(self, ask: Ask) -> list[Tensor]:
        counts = [len(slots) for slots in ask.slots]
        asked = [row for row, count in enumerate(counts) if count]
        found = self._body.logits_in(
            [ask.ids_BT[row, : ask.lengths[row]].to(self._device) for row in asked],
            [ask.times[row] for row in asked],
            [ask.slots[row].to(self._device) - self._shift for row in asked],
        )
        rest = iter(found)
        return [next(rest) if count else torch.empty(0, self._vocab_size) for count in counts]

    def _all_at_once(self, ask: Ask) -> list[Tensor]:
        hidden_BTD = self._body.encode(ask.ids_BT.to(self._device), ask.lengths, ask.times)
        rows = zip(hidden_BTD, ask.slots, strict=True)
        # The head takes each row's slots separately, so that a result does not depend on the number of other rows'.
        return [
            self._body.logits_of(hidden_TD[slots.to(self._device) - self._shift]) for hidden_TD, slots in rows
        ]


def refuse_format(precision: Precision, backbone: DecoderWeights) -> None:
    """ConfigError (`bad_value`) for a format other than fp32 of a model that only its module computes."""
    if precision != "fp32":
        raise ConfigError(
            f"precision {precision!r}: a diffusion decoder has it where it is a plain Llama or Qwen3 in a folder of"
            f" cm3kit, and this is {backbone.config.model_type!r}; leave it out.",
            code="bad_value",
        )


class _Lean:
    """The lean engine, which has no time."""

    def __init__(
        self,
        backbone: DecoderWeights,
        vocab_size: int,
        unseen: int | None,
        precision: Precision,
    ) -> None:
        self._engine, self._unseen = LeanEngine(backbone, vocab_size, precision, rows=256), unseen

    def encode(self, ids_BT: Tensor, lengths: Sequence[int], times: Sequence[float]) -> Tensor:
        return self._engine.encode(ids_BT, lengths, self._unseen)

    def logits_in(
        self, rows: Sequence[Tensor], times: Sequence[float], places: Sequence[Tensor]
    ) -> list[Tensor]:
        if not rows:
            return []
        logits_MV = self.logits_of(self._engine.encode_rows(rows, places, self._unseen))
        return list(torch.split(logits_MV, [len(each) for each in places]))

    def logits_of(self, hidden_MD: Tensor) -> Tensor:
        return self._engine.logits_of(hidden_MD)


class _Module:
    """The module itself, as it stands in memory; a time-conditioned one gets the time."""

    def __init__(
        self, backbone: PreTrainedModel, vocab_size: int, unseen: int | None, hidden: Hidden | None
    ) -> None:
        self._backbone, self._vocab_size, self._unseen, self._hidden = backbone, vocab_size, unseen, hidden

    @torch.no_grad()
    def encode(self, ids_BT: Tensor, lengths: Sequence[int], times: Sequence[float]) -> Tensor:
        if self._hidden is not None:
            return self._hidden(ids_BT, lengths, times)
        device, width = ids_BT.device, ids_BT.shape[1]
        time_B = torch.tensor(times, device=device) if is_timed(self._backbone) else None
        seen_B1QT = row_mask(ids_BT, lengths, self._unseen)
        if seen_B1QT is None:
            return hidden_states(self._backbone, ids_BT, "full", times=time_B)
        place_T, seen_B1TT = torch.arange(width, device=device), seen_B1QT.expand(-1, 1, width, -1)
        places_1T = place_T.clamp(max=int(self._backbone.config.max_position_embeddings) - 1)[None]
        return hidden_states(self._backbone, ids_BT, seen_B1TT, places_1T, time_B)

    def logits_in(
        self, rows: Sequence[Tensor], times: Sequence[float], places: Sequence[Tensor]
    ) -> list[Tensor]:
        asked = zip(rows, times, places, strict=True)
        return [self.logits_of(self.encode(ids[None], [len(ids)], [time])[0, at]) for ids, time, at in asked]

    @torch.no_grad()
    def logits_of(self, hidden_MD: Tensor) -> Tensor:
        return head(self._backbone, hidden_MD)[..., : self._vocab_size].float()
