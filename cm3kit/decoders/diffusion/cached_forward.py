"""Parts of rows through a backbone of transformers, and logits of single slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.denoiser import Ask
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.decoders.past import Past, PlainPast
from cm3kit.models.backbone import head, mask_for
from cm3kit.models.plain import DecoderWeights, device_of
from cm3kit.models.timestep import is_timed, time_inputs
from cm3kit_tokenizers.errors import ConfigError


class Passes:
    """Runs some places of rows against keys and values kept before.

    Args:
        backbone: a causal language model of transformers whose layers take a boolean mask and a `DynamicCache`.
        vocab_size: logits are given for this many ids, from 0.
        shift: whether the logits of a slot are those of the place before it, as in models that were causal;
            the first place of a row, which has none before it, uses its own.
        engine: the same weights as `LeanEngine` reads them, which take less time; None runs the module.

    Attributes:
        alone: whether rows go through one by one; on a CPU.
    """

    def __init__(
        self,
        backbone: DecoderWeights,
        vocab_size: int,
        shift: bool,
        engine: LeanEngine | None = None,
    ) -> None:
        self._backbone: Any = backbone
        self._vocab_size, self.shift, self._engine = vocab_size, shift, engine
        self._window = int(backbone.config.max_position_embeddings)
        self.device = device_of(backbone)
        self.alone = self.device.type == "cpu"

    def past(self) -> Past:
        """Room for keys and values of passes, empty."""
        if self._engine is not None:
            return PlainPast()
        from transformers import DynamicCache

        found: Past = DynamicCache()
        return found

    @torch.no_grad()
    def run(
        self,
        ids_BQ: Tensor,
        mask_B1QK: Tensor,
        start: int,
        past: Past | None = None,
        times_BQ: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, Q, D) of the places from `start` on.

        Args:
            mask_B1QK: True where a query may attend; keys are those in `past` in their order, then those of `ids_BQ`.
            past: keys and values, to which those of `ids_BQ` are added.
            times_BQ: diffusion time of each place, which is not passed to models without time conditioning.
        """
        if self._engine is not None:
            return self._engine.extend(ids_BQ, mask_B1QK.to(self.device), start, past)
        times_BQ = times_BQ.to(self.device) if times_BQ is not None and is_timed(self._backbone) else None
        places_1Q = torch.arange(start, start + ids_BQ.shape[1], device=self.device)[None]
        output = self._backbone.base_model(
            input_ids=ids_BQ.to(self.device),
            attention_mask=mask_for(self._backbone, mask_B1QK.to(self.device)),
            position_ids=places_1Q,
            past_key_values=past,
            use_cache=past is not None,
            **time_inputs(self._backbone, times_BQ, ids_BQ.shape),
        )
        hidden_BQD: Tensor = output.last_hidden_state
        return hidden_BQD

    def follow(self, ids_BQ: Tensor, past: Past, prefix: int = 0) -> Tensor:
        """Hidden states (B, Q, D) of ids behind those in `past`, to which they are added; each looks left.

        Args:
            prefix: so many of a prompt look at one another.
        """
        if self._engine is not None and self._engine.fused:
            return self._engine.follow(ids_BQ, past, prefix)
        (rows, width), start = ids_BQ.shape, past.get_seq_length()
        seen_QK = torch.ones(width, start + width, dtype=torch.bool).tril(start)
        seen_QK[:prefix, :prefix] = True
        return self.run(ids_BQ, seen_QK.expand(rows, 1, -1, -1), start, past, torch.zeros(ids_BQ.shape))

    @torch.no_grad()
    def read(
        self, hidden_BQD: Tensor, start: int, before_BD: Tensor | None, slots: Sequence[Tensor]
    ) -> list[Tensor]:
        """For each row fp32 logits (M, V) of its slots.

        Args:
            hidden_BQD: hidden states of the places from `start` on.
            before_BD: hidden state of the place before `start`, for shifted logits; None at a row's start.
        """
        if self.shift:
            first_BD = hidden_BQD[:, 0] if before_BD is None else before_BD
            hidden_BQD = torch.cat([first_BD[:, None], hidden_BQD[:, :-1]], 1)
        asked_MD = [hidden_BQD[row, each.to(self.device) - start] for row, each in enumerate(slots)]
        if self._engine is not None:
            logits_MV = self._engine.logits_of(torch.cat(asked_MD))
        else:
            logits_MV = head(self._backbone, torch.cat(asked_MD))[:, : self._vocab_size].float()
        return list(torch.split(logits_MV, [len(each) for each in slots]))

    def each(
        self, ask: Ask, run: Callable[[int, Ask], tuple[list[Tensor], tuple[int, int]]]
    ) -> tuple[list[Tensor], tuple[int, ...]]:
        """Put a call through row by row, without padding, or in one piece.

        What a row computes then does not depend on the other rows.

        Args:
            run: `run(row, part)` gives logits of a part that begins at that row, and the places it computed.

        Returns:
            logits (M, V) of each row, and how many of its places were computed, padding not counted.

        Raises:
            ConfigError: a row is longer than the model's window (`too_long`).
        """
        self.check(max(ask.lengths, default=0))
        found = [torch.empty(0, self._vocab_size, device=self.device)] * len(ask.slots)
        counts = [0] * len(ask.slots)
        for row, part in _parts(ask, self.alone):
            logits, (start, stop) = run(row, part)
            found[row : row + len(logits)] = logits
            counts[row : row + len(logits)] = [max(0, min(stop, each) - start) for each in part.lengths]
        return found, tuple(counts)

    def check(self, length: int) -> None:
        """Refuse a row that is longer than the model's window; ConfigError (`too_long`)."""
        if length > self._window:
            raise ConfigError(
                f"The page takes {length} ids, the model's window holds {self._window};"
                " shorten the page or ask for less.",
                code="too_long",
            )


def _parts(ask: Ask, alone: bool) -> list[tuple[int, Ask]]:
    if not any(len(each) for each in ask.slots):
        return []
    if not alone:
        return [(0, ask)]
    return [
        (row, Ask(ask.ids_BT[row : row + 1, :length], (length,), (slots,), (time,), ask.block))
        for row, (length, slots, time) in enumerate(zip(ask.lengths, ask.slots, ask.times, strict=True))
        if len(slots)
    ]


def copies(past: Past, rows: int) -> Past:
    """Keys and values of one row for several."""
    out: Past = type(past)()
    for index, layer in enumerate(past.layers):
        shape = (rows, *layer.keys.shape[1:])
        out.update(layer.keys.expand(shape), layer.values.expand(rows, *layer.values.shape[1:]), index)
    return out
