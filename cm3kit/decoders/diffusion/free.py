"""The constraint of boards that no grammar speaks of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cm3kit.types import BlankKind, Board
from cm3kit_tokenizers.errors import ConfigError


class Free:
    """Any id of its stretch's range may stand in a slot, but for some that never may.

    After the first `<eoss>` of a padded stretch only `<eoss>` may follow, and none may be written
    before a slot that holds something else.

    Args:
        board: the board.
        vocab_size: V.
        mask: id of an open slot, never allowed.
        eoss: id that ends padded stretches, allowed there alone.
        banned: ids that are never allowed.
        ranges: ids of the stretches of a kind; kinds that are missing take all.

    Raises:
        ConfigError: a kind of stretch that the board has is left with no id (`bad_value`).
    """

    def __init__(
        self,
        board: Board,
        vocab_size: int,
        mask: int,
        eoss: int,
        banned: Iterable[int] = (),
        ranges: Mapping[BlankKind, range] | None = None,
    ) -> None:
        self._stretches = {slot: each for each in board.stretches for slot in range(each.start, each.stop)}
        self._ids, self._mask, self._eoss = list(board.ids), mask, eoss
        self._menus = {
            kind: _menu(vocab_size, (ranges or {}).get(kind), {*banned, mask, eoss})
            for kind in {each.kind for each in board.stretches}
        }
        self._end = torch.zeros(vocab_size, dtype=torch.bool)
        self._end[eoss] = True
        for kind, menu_V in self._menus.items():
            if not bool(menu_V.any()):
                raise ConfigError(f"Nothing may stand in a stretch of kind {kind!r}.", code="bad_value")

    def allowed(self, slots: Sequence[int]) -> Tensor:
        """Ids that may come into each of these open slots, bool (M, V)."""
        return torch.stack([self._allowed(slot) for slot in slots])

    def commit(self, slot: int, id: int) -> None:
        """Take note that an id was written."""
        self._ids[slot] = id

    def release(self, slot: int) -> None:
        """Take note that a slot is open again."""
        self._ids[slot] = self._mask

    def _allowed(self, slot: int) -> Tensor:
        stretch = self._stretches[slot]
        menu_V = self._menus[stretch.kind]
        if not stretch.padded:
            return menu_V
        if self._eoss in self._ids[stretch.start : slot]:
            return self._end
        later = self._ids[slot + 1 : stretch.stop]
        return menu_V if any(id not in (self._mask, self._eoss) for id in later) else menu_V | self._end


def _menu(vocab_size: int, ids: range | None, banned: set[int]) -> Tensor:
    menu_V = torch.zeros(vocab_size, dtype=torch.bool)
    menu_V[slice(0, vocab_size) if ids is None else slice(ids.start, ids.stop)] = True
    menu_V[[id for id in banned if id < vocab_size]] = False
    return menu_V
