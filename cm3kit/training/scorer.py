"""The backbone and its loss as one module, and the positions of a batch that it scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from cm3kit.models.backbone import Attention, hidden_states
from cm3kit.models.linear_loss import chunk_size, linear_nats
from cm3kit.training.collate import Packed, Scored, scored_positions
from cm3kit_tokenizers.vocab import Vocab

KINDS = "image", "text", "hidden image", "hidden text"  # of what is scored, clean and noisy


class Scorer(nn.Module):
    """The backbone behind one call, so that compiling and distributed wrappers see all of it.

    Args:
        excluded: the mask id of objectives that mask, which is never an answer and has no share of the softmax.
    """

    def __init__(self, backbone: PreTrainedModel, excluded: int | None = None) -> None:
        super().__init__()
        self.backbone, self.excluded = backbone, excluded

    def forward(
        self,
        ids_BT: Tensor,
        scored: Scored,
        mask: Attention,
        position_ids_BT: Tensor,
        times_BT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Weighed nats of the scored positions, added up, and those of each (N,), without weight or gradient.

        All is inside this call, so that compiling fuses softmax and loss, and weights that are spread are whole.
        """
        hidden_BTD = hidden_states(self.backbone, ids_BT, mask, position_ids_BT, times_BT)
        hidden_ND = hidden_BTD.flatten(0, 1)[scored.positions_N]
        return linear_nats(self.backbone, hidden_ND, scored.targets_N, scored.weights_N, self.excluded)


@dataclass
class Picked:
    """Picks the positions of batches that are scored, and says of which of `KINDS` each is.

    Args:
        width: of the logits of a compiled model, which is compiled again for another number of positions. So there is
            room for more of them, which is kept, in whole chunks of the loss: chunks of nothing but room change no sum.
            None of a model that is not compiled.
    """

    vocab: Vocab
    width: int | None
    room: int = 0

    def __call__(self, batch: Packed, device: torch.device) -> tuple[Scored, Tensor]:
        """Of a batch on the CPU; what is room has kind -1 and weighs nothing."""
        scored = scored_positions(batch)
        noisy_N = batch.noisy_BT.flatten()[scored.positions_N]
        kinds_N = 2 * noisy_N.long() + (scored.targets_N < self.vocab.image.start).long()
        if self.width is None:
            return scored, kinds_N
        size, count = chunk_size(self.width, device), len(kinds_N)
        self.room = max(self.room, -(-count // size) * size)
        more = 0, self.room - count
        return Scored(*(pad(each, more) for each in scored)), pad(kinds_N, more, value=-1)
