"""Who looks where, in training and in sampling: one formula for causal, full and block-wise attention.

Every id has a document, a block in it, and belongs to the noisy or to the clean copy. An id of one document sees

- noisy ids of its own block, if it is noisy itself;
- clean ids of earlier blocks;
- clean ids of its own block, if it is clean itself.

Clean ids in blocks of one are a causal model, noisy ids in one block see everything, and a noisy copy beside the
clean one has the mask of block diffusion (BD3-LM, arXiv:2503.09573, sec. 3.3; ACDiT, arXiv:2412.07720, with the
halves swapped). The order in which the ids stand in the row does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""`mod(row, head, query, key)`: whether that query may look at that key (FlexAttention, arXiv:2412.05496)."""

Numbers = tuple[Tensor, Tensor, Tensor]
"""Document, block, and whether noisy, of some ids."""

WHOLE = slice(None)
TILE = 128  # queries and keys of a tile that FlexAttention does or skips


def block_mask(
    documents_BT: Tensor,
    blocks_BT: Tensor,
    noisy_BT: Tensor,
    queries: slice = WHOLE,
    unseen_BT: Tensor | None = None,
) -> Tensor:
    """Attention mask of packed rows, bool (B, 1, Q, T), True where a query may look.

    Args:
        documents_BT: document of each id, from 1; 0 is padding, which sees itself alone, so that no softmax
            is empty.
        blocks_BT: number of the block of each id, ascending with its place in the document.
        noisy_BT: whether an id is of the noised copy (bool, or 0 and 1).
        queries: the places whose rows of the mask are wanted; all by default.
        unseen_BT: places that see, and are seen by nobody else: open slots, where masks are not to be looked at.
    """
    noisy_BT = noisy_BT.bool()
    asking = documents_BT[:, queries, None], blocks_BT[:, queries, None], noisy_BT[:, queries, None]
    asked = documents_BT[:, None], blocks_BT[:, None], noisy_BT[:, None]
    places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    itself_QT = places_T[queries, None] == places_T
    sees_BQT = _sees(asking, asked)
    if unseen_BT is not None:
        sees_BQT = sees_BQT & ~unseen_BT[:, None]
    return (itself_QT | sees_BQT)[:, None]


def row_mask(ids_BT: Tensor, lengths: Sequence[int], unseen: int | None = None) -> Tensor | None:
    """Attention mask of rows padded on the right, whose places see all of their own row; None where that is all.

    Args:
        unseen: an id that no other place sees, as with `unseen_BT` of `block_mask`.

    Returns:
        bool (B, 1, 1 or T, T), True where a query may look.
    """
    width = ids_BT.shape[1]
    if unseen is None and all(length == width for length in lengths):
        return None
    place_T = torch.arange(width, device=ids_BT.device)
    # A row of padding alone sees its first place: a softmax over nothing is no number.
    length_B = torch.tensor(lengths, device=ids_BT.device).clamp(min=1)
    seen_B11T = (place_T < length_B[:, None])[:, None, None]
    if unseen is None:
        return seen_B11T
    return seen_B11T & (ids_BT != unseen)[:, None, None] | (place_T[:, None] == place_T)


def mask_mod(
    documents_BT: Tensor, blocks_BT: Tensor, noisy_BT: Tensor, unseen_BT: Tensor | None = None
) -> MaskMod:
    """The mask of `block_mask` as a function of indices, for FlexAttention."""
    # A kernel reads these for every pair of a tile that is not all alike.
    document_BT, block_BT, noise_BT = documents_BT.int(), blocks_BT.int(), noisy_BT.bool()

    def mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        asking = document_BT[row, query], block_BT[row, query], noise_BT[row, query]
        asked = document_BT[row, key], block_BT[row, key], noise_BT[row, key]
        return (query == key) | _sees(asking, asked)

    if unseen_BT is None:
        return mod

    def without_unseen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query == key) | (mod(row, head, query, key) & ~unseen_BT[row, key])

    return without_unseen


def flex_mask(
    documents_BT: Tensor, blocks_BT: Tensor, noisy_BT: Tensor, unseen_BT: Tensor | None = None
) -> BlockMask:
    """The mask of `block_mask` as FlexAttention's `BlockMask`, which skips tiles where nobody may look.

    The tiles are counted one row of them after another, so that the whole mask is never in memory.
    """
    from torch.nn.attention.flex_attention import BlockMask  # it imports PyTorch's compiler

    rows, length = documents_BT.shape
    count = -(-length // TILE)
    seen = []
    for start in range(0, length, TILE):
        queries = slice(start, min(start + TILE, length))
        mask_BQT = block_mask(documents_BT, blocks_BT, noisy_BT, queries, unseen_BT)[:, 0]
        whole_BQT = pad(mask_BQT, (0, count * TILE - length))
        seen.append(whole_BQT.view(rows, -1, count, TILE).sum((1, 3)))
    seen_B1IJ = torch.stack(seen, 1)[:, None]
    full_B1IJ = seen_B1IJ == TILE * TILE
    return BlockMask.from_kv_blocks(
        *_listed((seen_B1IJ > 0) & ~full_B1IJ),
        *_listed(full_B1IJ),
        BLOCK_SIZE=TILE,
        mask_mod=mask_mod(documents_BT, blocks_BT, noisy_BT, unseen_BT),
        seq_lengths=(length, length),
    )


def _listed(tiles_B1IJ: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles of each row of them there are, and which, those first."""
    order_B1IJ = torch.argsort(tiles_B1IJ.int(), dim=-1, descending=True, stable=True)
    return tiles_B1IJ.sum(-1).int(), order_B1IJ.int()


def annealed(
    documents_BT: Tensor,
    blocks_BT: Tensor,
    noisy_BT: Tensor,
    share: float,
    rng: Generator,
    unseen_BT: Tensor | None = None,
) -> Tensor:
    """`block_mask` on the way from causal to full attention, bool (B, 1, T, T).

    In a document that is one noisy block, each place to the right of a query is open with probability `share`,
    drawn anew at every call; other documents keep their mask. A causal model that is to become a diffusion model
    sees `share` grow from 0 to 1 (attention mask annealing of DiffuLLaMA, arXiv:2410.17891).

    Args:
        share: 0 is causal, 1 is full attention.
        rng: generator of the draws.
        unseen_BT: as in `block_mask`.

    Raises:
        ValueError: `share` is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share}: a share of the places is in [0, 1].")
    mask_B1TT = block_mask(documents_BT, blocks_BT, noisy_BT, unseen_BT=unseen_BT)
    # Uniforms are under 1 and never under 0, so that both ends are exact.
    drawn_BTT = torch.rand(mask_B1TT[:, 0].shape, generator=rng, device=rng.device) < share
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    odd_BTT = (blocks_BT[:, :, None] != blocks_BT[:, None, :]) | ~noisy_BT.bool()[:, None, :]
    plain_BT = ~(same_BTT & odd_BTT).any(-1)
    open_BTT = drawn_BTT.to(mask_B1TT.device) | ~plain_BT[:, :, None]
    length = documents_BT.shape[1]
    left_TT = torch.ones(length, length, dtype=torch.bool, device=mask_B1TT.device).tril()
    return mask_B1TT & (left_TT | open_BTT)[:, None]


def _sees(asking: Numbers, asked: Numbers) -> Tensor:
    """Whether ids with these numbers may look at ids with those; padding sees nothing."""
    (document, block, noisy), (of_document, of_block, of_noisy) = asking, asked
    own = (block == of_block) & (noisy == of_noisy)
    return (document == of_document) & (document > 0) & (own | (~of_noisy & (of_block < block)))
