"""Examples side by side in rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cm3kit.types import Example


class Packed(NamedTuple):
    """Examples side by side in rows; `documents_BT` numbers them from 1, 0 is padding.

    `targets_BT[b, t]` is what the model is to say at t, and weighs `weights_BT[b, t]`. `mass` divides the loss.
    """

    ids_BT: Tensor
    targets_BT: Tensor
    weights_BT: Tensor
    documents_BT: Tensor
    blocks_BT: Tensor
    noisy_BT: Tensor
    places_BT: Tensor
    times_BT: Tensor
    mass: Tensor


class Scored(NamedTuple):
    """The scored positions of a batch: flat positions of the rows, their targets and weights."""

    positions_N: Tensor
    targets_N: Tensor
    weights_N: Tensor


def scored_positions(batch: Packed) -> Scored:
    """The positions that weigh; of a batch on the CPU, where nothing waits for their number."""
    positions_N = batch.weights_BT.flatten().nonzero()[:, 0]
    return Scored(
        positions_N, batch.targets_BT.flatten()[positions_N], batch.weights_BT.flatten()[positions_N]
    )


def all_scored(ids_BT: Tensor) -> Scored:
    """Every position, which is the most that an objective scores."""
    count = ids_BT.numel()
    return Scored(
        torch.arange(count, device=ids_BT.device), ids_BT.flatten(), torch.ones(count, device=ids_BT.device)
    )


def pack(examples: list[Example], rows: int, window: int) -> Packed:
    """Place each example in the first row with room; those that fit nowhere are left out."""
    ids_BT, targets_BT, documents_BT, blocks_BT, places_BT = (
        torch.zeros(rows, window, dtype=torch.long) for _ in range(5)
    )
    weights_BT, times_BT = torch.zeros(rows, window), torch.zeros(rows, window)
    noisy_BT = torch.zeros(rows, window, dtype=torch.bool)
    used, mass = [0] * rows, 0.0
    for number, each in enumerate(examples, 1):
        size = len(each.ids)
        row = next((row for row in range(rows) if used[row] + size <= window), None)
        if row is None:
            continue
        place = slice(used[row], used[row] + size)
        used[row] += size
        inside = torch.arange(size)
        ids_BT[row, place] = torch.tensor(each.inputs or each.ids)
        targets_BT[row, place], weights_BT[row, place] = _aligned(each)
        documents_BT[row, place] = number
        blocks_BT[row, place] = inside if each.blocks is None else torch.tensor(each.blocks)
        noisy_BT[row, place] = each.noisy is not None and torch.tensor(each.noisy)
        places_BT[row, place] = inside if each.places is None else torch.tensor(each.places)
        times_BT[row, place] = torch.as_tensor(each.time)
        mass += float(weights_BT[row, place].sum()) if each.mass is None else each.mass
    return Packed(
        ids_BT, targets_BT, weights_BT, documents_BT, blocks_BT, noisy_BT, places_BT, times_BT, torch.tensor(mass)
    )  # fmt: skip


def _aligned(each: Example) -> tuple[Tensor, Tensor]:
    """The target of each position: the id there, or with `shift` the one after it."""
    ids, weights = torch.tensor(each.ids), torch.tensor(each.weights)
    if not each.shift:
        return ids, weights
    # Nothing before a document's first id predicts it, and its last position has no target.
    return ids.roll(-1), torch.cat([weights[1:], weights.new_zeros(1)])
