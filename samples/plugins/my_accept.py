"""An accept rule: which of the scored positions are written now. Try: --decoder diffusion --accept above-mean."""

from torch import Tensor

from cm3kit.decoders.diffusion.axes import accept


@accept("above-mean")
def above_mean(score_M: Tensor, planned: int) -> Tensor:
    """Every position whose score is above the mean, and the `planned` best at least: bool (M,)."""
    best_M = score_M.new_zeros(len(score_M), dtype=bool)
    best_M[score_M.sort(descending=True, stable=True).indices[:planned]] = True
    return best_M | (score_M > score_M.mean())
