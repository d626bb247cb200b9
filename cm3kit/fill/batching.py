"""Many orders through one model: whatever can share a batch does, and a place that is free takes the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from cm3kit.fill.fillers import Filler, Task
from cm3kit.fill.filling import Filled
from cm3kit.fill.options import GenerateOptions
from cm3kit.fill.tasks import Result
from cm3kit.types import Canvas
from cm3kit.types import Result as DecoderResult
from cm3kit_tokenizers.errors import as_exception, stops
from cm3kit_tokenizers.page import Page

# Orders that are laid out before their turn, so that those of a kind find together.
AHEAD = 64


@dataclass(frozen=True, slots=True)
class Order:
    """One result that is wanted: `Kit.generate`'s number `index` of a seed, or `Kit.infill`'s of a page.

    `key` is whatever the caller knows it by.
    """

    prompt: str | bytes | Path = ""
    task: Task = "image"
    seed: int = 0
    index: int = 0
    options: GenerateOptions = field(default_factory=GenerateOptions)
    page: Page | None = None
    key: Any = None


class Filling(Protocol):
    """What there is to write for one order, canvas after canvas."""

    def next_canvas(self) -> Canvas | None:
        """What is to be filled next; None once all is."""

    def take(self, result: DecoderResult) -> None:
        """Take the result of the last canvas."""

    def result(self) -> Result | Filled:
        """The order's result, once there is no next canvas."""


@dataclass(slots=True)
class _Open:
    """An order on its way, and the canvas that waits to be filled."""

    order: Order
    filling: Filling
    canvas: Canvas | None = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: convolutions round by the number of threads, which no picture may depend on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class OrderTaker(Protocol):
    """What carries out orders; `kit.Kit` is one."""

    def filler(self, options: GenerateOptions) -> Filler:
        """The decoder that the options choose; ConfigError (`bad_value`) if the model does not have it."""

    def filling(self, order: Order) -> Filling:
        """What an order asks of the decoder, canvas after canvas."""


def stream(kit: OrderTaker, orders: Iterable[Order]) -> Iterator[tuple[Order, Result | Filled | Exception]]:
    """Carry out orders; see `Kit.sample`."""
    return _Stream(kit, iter(orders)).run()


class _Stream:
    """Queues of canvases that can be filled together, by batch key; the longest one is always next.

    A page of several windows comes back with its next canvas, to any queue.
    """

    def __init__(self, kit: OrderTaker, orders: Iterator[Order]) -> None:
        self._kit, self._orders = kit, orders
        self._queues: dict[tuple[str, Hashable], deque[_Open]] = {}
        self._finished: deque[tuple[Order, Result | Filled | Exception]] = deque()

    def run(self) -> Iterator[tuple[Order, Result | Filled | Exception]]:
        while True:
            self._look_ahead()
            yield from self._drain()
            if not self._waiting:
                return
            yield from self._run_queue(max(self._queues, key=lambda key: len(self._queues[key])))

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def _look_ahead(self) -> None:
        while self._waiting < AHEAD and self._start():
            pass

    def _run_queue(self, key: tuple[str, Hashable]) -> Iterator[tuple[Order, Result | Filled | Exception]]:
        source = _Canvases(self._queues[key], self._look_ahead)
        options, answered = self._queues[key][0].order.options, set[int]()
        try:
            for number, result in self._kit.filler(options).stream(key[1], source, options):
                answered.add(number)
                self._take(source.taken[number], result)
                yield from self._drain()
        except BaseException as error:
            if stops(error):
                raise
            left = [each for number, each in enumerate(source.taken) if number not in answered]
            self._one_by_one(left, key, error)
            yield from self._drain()
        if not self._queues[key]:
            del self._queues[key]

    def _take(self, opened: _Open, result: DecoderResult | Exception) -> None:
        if isinstance(result, Exception):
            self._finished.append((opened.order, result))
        else:
            self._go_on(opened, result)

    def _one_by_one(self, left: list[_Open], key: tuple[str, Hashable], error: BaseException) -> None:
        """Fill each of several canvases by itself after an error, which then is that of one of them."""
        for opened in left:
            options = opened.order.options
            try:
                if len(left) == 1:
                    raise error
                alone = _Canvases(deque((opened,)), lambda: None)
                for _, result in self._kit.filler(options).stream(key[1], alone, options):
                    self._take(opened, result)
            except BaseException as own:
                if stops(own):
                    raise
                self._finished.append((opened.order, as_exception(own)))

    def _start(self) -> bool:
        """Lay out the next order; False if there is none."""
        order = next(self._orders, None)
        if order is None:
            return False
        try:
            with one_thread():
                filling = self._kit.filling(order)
        except BaseException as error:
            if stops(error):
                raise
            self._finished.append((order, as_exception(error)))
        else:
            self._go_on(_Open(order, filling), None)
        return True

    def _go_on(self, opened: _Open, result: DecoderResult | None) -> None:
        """Hand a result over, and queue the next canvas or finish the order."""
        options = opened.order.options
        try:
            with one_thread():
                if result is not None:
                    opened.filling.take(result)
                opened.canvas = opened.filling.next_canvas()
                if opened.canvas is None:
                    self._finished.append((opened.order, opened.filling.result()))
                    return
            filler = self._kit.filler(options)
            # Keys of two fillers may be equal by accident.
            key = (type(filler).__name__, filler.batch_key(opened.canvas, options))
            self._queues.setdefault(key, deque()).append(opened)
        except BaseException as error:
            if stops(error):
                raise
            self._finished.append((opened.order, as_exception(error)))

    def _drain(self) -> Iterator[tuple[Order, Result | Filled | Exception]]:
        while self._finished:
            yield self._finished.popleft()


class _Canvases:
    """The canvases of a queue, which may have a next one after it had none."""

    def __init__(self, queue: deque[_Open], look_ahead: Callable[[], None]) -> None:
        self._queue, self._look_ahead = queue, look_ahead
        self.taken: list[_Open] = []

    def __iter__(self) -> Iterator[Canvas]:
        return self

    def __next__(self) -> Canvas:
        if not self._queue:
            self._look_ahead()
        if not self._queue:
            raise StopIteration
        self.taken.append(self._queue.popleft())
        canvas = self.taken[-1].canvas
        assert canvas is not None
        return canvas
