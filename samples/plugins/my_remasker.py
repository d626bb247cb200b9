"""A remasker: masks the least sure position again in each step but the last. Try: --modifier second-thoughts."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cm3kit.decoders.diffusion.axes import modifier
from cm3kit.decoders.diffusion.modifiers import Block


@modifier("second-thoughts")
@dataclass(frozen=True, kw_only=True)
class SecondThoughts:
    """Positions below `floor` are not sure."""

    floor: float = 0.5

    def reopen(self, block: Block, rng: Generator) -> Tensor:
        """The written position (K,) with the lowest confidence, if that is below `floor`."""
        unsure_N = block.written_N & (block.confidence_N < self.floor)
        if block.next_time == 0 or not bool(unsure_N.any()):
            return block.slots_N[:0]
        least_N = torch.where(unsure_N, block.confidence_N, torch.inf)
        return block.slots_N[least_N.argmin()][None]

    def unmask(self, block: Block) -> float:
        """Chance that a step of the ancestral sampler writes a masked position."""
        return 1 - block.next_time / block.time if block.time else 1.0

    def plan(self, blanks: int, steps: int) -> list[int]:
        """How many positions each step writes for good."""
        return [blanks * (step + 1) // steps - blanks * step // steps for step in range(steps)]
