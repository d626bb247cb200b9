"""Interfaces of the diffusion decoder: the model, and the constraint on what each position may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ask:
    """Which logits are wanted.

    Attributes:
        ids_BT: rows, padded on the right.
        lengths: ids of each row that are not padding.
        slots: for each row the places whose logits are wanted, ascending; a row may want none.
        times: for each row the share of its slots that is still open (the diffusion time t); of the block's
            slots alone for models that were trained block by block.
        block: places `start:stop` that are being written, where the canvas is written block by block.
    """

    ids_BT: Tensor
    lengths: tuple[int, ...]
    slots: tuple[Tensor, ...]
    times: tuple[float, ...]
    block: tuple[int, int] | None = None


class Denoiser(Protocol):
    """A model that scores every place of a canvas at once."""

    @property
    def mask(self) -> int:
        """Id that stands for what is not written yet."""

    def open_block(self, ids_BT: Tensor, lengths: Sequence[int], block: tuple[int, int]) -> None:
        """Called when a new block begins; caches are renewed here."""

    def logits(self, ask: Ask) -> list[Tensor]:
        """For each row fp32 logits (M, V) of what belongs at its M slots; aligned, whatever the model's shift."""


@runtime_checkable
class Metered(Protocol):
    """A denoiser that says how much it computed; of any other every position of every pass is counted."""

    @property
    def computed(self) -> tuple[int, ...]:
        """For each row the positions that the latest call, `logits` or `open_block`, took through the layers."""


@runtime_checkable
class Sharing(Protocol):
    """A denoiser that computes once what rows have in common before the block that is asked about."""

    def together(self, ask: Ask) -> list[Tensor]:
        """As `Denoiser.logits`, of rows that are alike before the block."""


class Constraint(Protocol):
    """Which ids the masked positions of one canvas may take, given the ids written so far.

    Whatever has been committed, some filling of the rest is allowed.
    """

    def allowed(self, slots: Sequence[int]) -> Tensor:
        """Ids that may come into each of these open slots, if it alone is written now: bool (M, V)."""

    def commit(self, slot: int, id: int) -> None:
        """Record that an allowed id was written."""

    def release(self, slot: int) -> None:
        """Record that a slot is masked again."""


@runtime_checkable
class Masking(Protocol):
    """A constraint that hands out masks which it keeps: of an object that came before no copy is made."""

    def masks(self, slots: Sequence[int]) -> Sequence[Tensor]:
        """As `Constraint.allowed`, for each slot a mask (V,) that nobody writes to, on the CPU."""


def masks_of(constraint: Constraint, slots: Sequence[int]) -> Sequence[Tensor]:
    """For each slot what it may hold, bool (V,), not to be written to."""
    if isinstance(constraint, Masking) and by_masks(constraint):
        return constraint.masks(slots)
    # A constraint may hand out a view of what `commit` and `release` write to.
    return constraint.allowed(slots).clone().unbind()


def by_masks(constraint: Constraint) -> bool:
    """Whether `masks` says what `allowed` does: a class that changes `allowed` alone no longer means the other."""
    for each in type(constraint).__mro__:
        if "masks" in vars(each) or "allowed" in vars(each):
            return callable(vars(each).get("masks"))
    return False
