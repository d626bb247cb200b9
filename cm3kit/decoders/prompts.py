"""Prompts on their way into a cache: which go through the layers together, and who looks where in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cm3kit.decoders.transfer import upload

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids for a slot of a cache, of which the first `prefix` look at one another."""

    slot: int
    ids: Sequence[int]
    prefix: int = 0


def in_parts(rows: Sequence[Row], size: Callable[[Row], int], most: int) -> Iterator[list[Row]]:
    """Groups of adjacent rows, or prompts, of as many ids together as the limit allows, or one by one."""
    part: list[Row] = []
    for each in rows:
        if part and sum(size(other) for other in part) + size(each) > most:
            yield part
            part = []
        part.append(each)
    if part:
        yield part


def prefix_mask(length: int, prefix: int, device: torch.device) -> Tensor | None:
    """Bool (T, T), True where an id may look: left, and the first `prefix` ids at one another; None is left alone."""
    if prefix < 2:
        return None
    seen_TT = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    seen_TT[:prefix, :prefix] = True
    return seen_TT


def padded_mask(prefixes: Sequence[int], length: int, device: torch.device) -> Tensor | None:
    """The same of prompts padded on the right to one length, (N, 1, T, T); None where all look left alone."""
    if max(prefixes) < 2:
        return None
    prefix_N11, place_T = upload(prefixes, device)[:, None, None], torch.arange(length, device=device)
    both_NTT = (place_T < prefix_N11) & (place_T[:, None] < prefix_N11)
    return (both_NTT | (place_T <= place_T[:, None]))[:, None]
