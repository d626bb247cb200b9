"""An order of writing: from the middle outwards. Try: --decoder diffusion --order outwards."""

from torch import Tensor

from cm3kit.decoders.diffusion.axes import order
from cm3kit.decoders.diffusion.scores import Scores


@order("outwards")
def outwards(scores: Scores) -> Tensor:
    """The nearer to the middle of what is masked, the earlier: scores (M,) in (0, 1]."""
    slots_M = scores.slots_M.double()
    return 1 / (1 + (slots_M - slots_M.mean()).abs())
