"""An editor: replaces what the model has come to find unlikely. Try: --modifier regret."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.axes import modifier
from cm3kit.decoders.diffusion.modifiers import Block


@modifier("regret")
@dataclass(frozen=True, kw_only=True)
class Regret:
    """An id goes whose probability has fallen below `floor`."""

    floor: float = 0.01
    post_steps: int = 4

    def edits(self, block: Block, slots_M: Tensor, logp_MV: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (K,) among these, and their new ids (K,)."""
        at_M = torch.searchsorted(block.slots_N, slots_M)
        ids_M = block.ids_N[at_M]
        now_M = logp_MV.gather(-1, ids_M[:, None])[:, 0].exp()
        best_M = logp_MV.argmax(-1)
        changed_M = block.written_N[at_M] & (now_M < self.floor) & (best_M != ids_M)
        return slots_M[changed_M], best_M[changed_M]
