"""The constraint of canvases that no grammar describes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cm3kit.types import Canvas, MaskSpan, SpanKind
from cm3kit_tokenizers.errors import ConfigError


class Free:
    """Any id of its span's range may stand at a masked position, but for some that never may.

    After the first `<eoss>` of a span that is not exact only `<eoss>` may follow, and none may be written before a
    position that holds something else.

    Args:
        canvas: what is missing.
        vocab_size: V.
        mask: id of an open slot, never allowed.
        eoss: id that ends spans that are not exact, allowed there alone.
        banned: ids that are never allowed.
        ranges: ids of the spans of a kind; kinds that are missing take all.

    Raises:
        ConfigError: a kind of span that the canvas has is left with no id (`bad_value`).
    """

    def __init__(
        self,
        canvas: Canvas,
        vocab_size: int,
        mask: int,
        eoss: int,
        banned: Iterable[int] = (),
        ranges: Mapping[SpanKind, range] | None = None,
    ) -> None:
        flat = canvas.flatten(mask)
        self._spans: dict[int, tuple[MaskSpan, range]] = {
            slot: (span, where)
            for span, where in zip(canvas.spans, flat.ranges, strict=True)
            for slot in where
        }
        self._ids, self._mask, self._eoss = list(flat.ids), mask, eoss
        self._menus = {
            kind: _menu(vocab_size, (ranges or {}).get(kind), {*banned, mask, eoss})
            for kind in {each.kind for each in canvas.spans}
        }
        self._end = torch.zeros(vocab_size, dtype=torch.bool)
        self._end[eoss] = True
        self._ending = {kind: menu_V | self._end for kind, menu_V in self._menus.items()}
        for kind, menu_V in self._menus.items():
            if not bool(menu_V.any()):
                raise ConfigError(f"Nothing may stand in a span of kind {kind!r}.", code="bad_value")

    def allowed(self, slots: Sequence[int]) -> Tensor:
        """Ids that may come into each of these open slots, bool (M, V)."""
        return torch.stack(self.masks(slots))

    def masks(self, slots: Sequence[int]) -> list[Tensor]:
        """The same mask by mask, (V,): do not write to them."""
        return [self._allowed(slot) for slot in slots]

    def commit(self, slot: int, id: int) -> None:
        """Record that an id was written."""
        self._ids[slot] = id

    def release(self, slot: int) -> None:
        """Record that a slot is masked again."""
        self._ids[slot] = self._mask

    def _allowed(self, slot: int) -> Tensor:
        span, where = self._spans[slot]
        menu_V = self._menus[span.kind]
        if span.exact:
            return menu_V
        if self._eoss in self._ids[where.start : slot]:
            return self._end
        later = self._ids[slot + 1 : where.stop]
        return menu_V if any(id not in (self._mask, self._eoss) for id in later) else self._ending[span.kind]


def _menu(vocab_size: int, ids: range | None, banned: set[int]) -> Tensor:
    menu_V = torch.zeros(vocab_size, dtype=torch.bool)
    menu_V[slice(0, vocab_size) if ids is None else slice(ids.start, ids.stop)] = True
    menu_V[[id for id in banned if id < vocab_size]] = False
    return menu_V
