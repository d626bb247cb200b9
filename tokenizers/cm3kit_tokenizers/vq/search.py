"""Analysis by synthesis: search for codes with a smaller pixel error than the nearest codes.

An encoder chooses each code by vector distance, without regard to the decoded picture. Classical codecs search by the
error of the decoded picture (rate–distortion optimisation); here the number of codes is fixed, so only the error
counts. The search is deterministic, and never increases the error.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3kit_tokenizers.vq.model import ImageTokenizer, to_signed

CANDIDATES = 5  # best codes per cell, initially including the current one
APART = 2  # distance in rows and columns of the cells that are tried at once


@torch.inference_mode()
def encode(tokenizer: ImageTokenizer, pixels_BCHW: Tensor, rounds: int = 0) -> Tensor:
    """Codes of uint8 pixels, `codes_BN`: the tokenizer's own, or after `rounds` of search.

    Every round visits every cell once, a quarter of them at a time. The best codes for a cell's vector are decoded in
    turn, and the best one is kept if it reduces the error around the cell and of the whole picture. A round costs 20
    to 24 decodings.
    """
    codes_BN = tokenizer.encode(pixels_BCHW)
    if not rounds:
        return codes_BN
    fitting_BNK = _fitting(tokenizer, pixels_BCHW)
    error_BHW = _error(tokenizer, codes_BN, pixels_BCHW)
    for step in range(rounds * APART**2):
        row, column = divmod(step % APART**2, APART)
        codes_BN, error_BHW = _improve(
            tokenizer, pixels_BCHW, codes_BN, error_BHW, fitting_BNK, row, column
        )  # fmt: skip
    return codes_BN


def _fitting(tokenizer: ImageTokenizer, pixels_BCHW: Tensor) -> Tensor:
    """The best codes of each cell by the tokenizer's quantizer, `(B, N, CANDIDATES)`."""
    vectors_BND = tokenizer.latents(to_signed(pixels_BCHW)).float().flatten(2).transpose(1, 2)
    scores_MK = tokenizer.quantizer.scores(vectors_BND.flatten(0, 1), tokenizer.codebook_KD)
    return scores_MK.topk(min(CANDIDATES, tokenizer.size), 1).indices.view(*vectors_BND.shape[:2], -1)


def _improve(
    tokenizer: ImageTokenizer, pixels_BCHW: Tensor, codes_BN: Tensor, error_BHW: Tensor, fitting_BNK: Tensor,
    row: int, column: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Try other codes in one of `APART`² cells of the grid; returns the new codes and errors."""
    height, width = tokenizer.grid
    places_HW = torch.arange(height * width, device=codes_BN.device).view(height, width)
    places_P = places_HW[row::APART, column::APART].flatten()
    if not len(places_P):
        return codes_BN, error_BHW
    best_BP = _around(error_BHW, tokenizer.grid, row, column)
    chosen_BP = codes_BN[:, places_P]
    for candidate_BP in fitting_BNK[:, places_P].unbind(2):
        tried_BN = codes_BN.index_copy(1, places_P, candidate_BP)
        if torch.equal(tried_BN, codes_BN):
            continue
        found_BP = _around(_error(tokenizer, tried_BN, pixels_BCHW), tokenizer.grid, row, column)
        chosen_BP = torch.where(found_BP < best_BP, candidate_BP, chosen_BP)
        best_BP = torch.minimum(found_BP, best_BP)
    tried_BN = codes_BN.index_copy(1, places_P, chosen_BP)
    after_BHW = _error(tokenizer, tried_BN, pixels_BCHW)
    better_B1 = (after_BHW.sum((1, 2)) < error_BHW.sum((1, 2)))[:, None]
    return torch.where(better_B1, tried_BN, codes_BN), torch.where(better_B1[..., None], after_BHW, error_BHW)


def _error(tokenizer: ImageTokenizer, codes_BN: Tensor, pixels_BCHW: Tensor) -> Tensor:
    """Squared error of uint8 pixels, summed over channels, `(B, h, w)`, in float64, in which sums are exact."""
    return (tokenizer.decode(codes_BN).double() - pixels_BCHW.double()).square().sum(1)


def _around(error_BHW: Tensor, grid: tuple[int, int], row: int, column: int) -> Tensor:
    """The error in the square around each cell of a group, `APART` cells wide and high: `(B, P)`."""
    side = error_BHW.shape[1] // grid[0]
    before, wide = side * (APART - 1) // 2, side * APART
    padded_BHW = F.pad(error_BHW, (before, wide, before, wide))[:, side * row :, side * column :]
    sums_BHW = F.avg_pool2d(padded_BHW[:, None], wide)[:, 0] * wide**2
    rows, columns = -((row - grid[0]) // APART), -((column - grid[1]) // APART)
    return sums_BHW[:, :rows, :columns].flatten(1)
