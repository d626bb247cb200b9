"""Packed rows of causal documents, written once more as a reference."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_mask(document_ids_BT: Tensor) -> Tensor:
    """Block-diagonal causal mask of packed rows, (B, 1, T, T), True where a position may look.

    Padding is a document of its own: give it an id that no document has.
    """
    length = document_ids_BT.shape[1]
    same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=document_ids_BT.device).tril()
    return (same_BTT & causal_TT)[:, None]


def packed_positions(document_ids_BT: Tensor) -> Tensor:
    """Position ids that start at 0 in every document of a packed row, (B, T); equal ids stand together."""
    length = document_ids_BT.shape[1]
    index_T = torch.arange(length, device=document_ids_BT.device)
    starts_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    starts_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return index_T - torch.where(starts_BT, index_T, 0).cummax(1).values
