"""What a task asks of the decoder: one canvas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3kit.fill.batching import Order
from cm3kit.fill.fillers import Ids
from cm3kit.rng import stream as seed_of
from cm3kit.types import Canvas
from cm3kit.types import Result as DecoderResult

if TYPE_CHECKING:
    from cm3kit.fill.kit import Kit, Result


class TaskFilling:
    """The one canvas of a task; implements `batching.Filling`."""

    def __init__(self, kit: Kit, order: Order, ids: Ids) -> None:
        self._kit, self._order, self._ids = kit, order, ids
        self._found: DecoderResult | None = None

    def next_canvas(self) -> Canvas | None:
        """The canvas, once."""
        if self._found is not None:
            return None
        order, seed = self._order, seed_of(self._order.seed, self._order.index)
        return self._kit.canvas(order.task, self._ids, order.options, seed)

    def take(self, result: DecoderResult) -> None:
        """Keep the result."""
        self._found = result

    def result(self) -> Result:
        """What the task wants of it."""
        order = self._order
        assert self._found is not None
        return self._kit.read(order.task, self._ids, self._found, order.seed, order.index)
