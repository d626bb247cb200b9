"""Many orders through one model: whatever can share a batch does, and a place that is free takes the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cm3kit.pipelines.options import GenerateOptions
from cm3kit.pipelines.ways import Answer, Task
from cm3kit_tokenizers.errors import as_exception, stops
from cm3kit_tokenizers.page import Page

if TYPE_CHECKING:
    from cm3kit.pipelines.kit import Filled, Kit, Result

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


@dataclass(slots=True)
class _Open:
    """An order on its way, and the question that it waits with."""

    order: Order
    writing: Generator[Any, Answer, Result | Filled]
    asked: Any = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: convolutions round by the number of threads, which no picture may depend on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def flow(kit: Kit, orders: Iterable[Order]) -> Iterator[tuple[Order, Result | Filled | Exception]]:
    """Carry out orders; see `Kit.sample`."""
    return _Flow(kit, iter(orders)).run()


class _Flow:
    """Lanes of questions that can be answered together; the longest one is always next.

    A page of several windows comes back with its next question, to any lane.
    """

    def __init__(self, kit: Kit, orders: Iterator[Order]) -> None:
        self._kit, self._orders = kit, orders
        self._lanes: dict[tuple[str, Hashable], deque[_Open]] = {}
        self._finished: deque[tuple[Order, Result | Filled | Exception]] = deque()

    def run(self) -> Iterator[tuple[Order, Result | Filled | Exception]]:
        while True:
            while self._waiting < AHEAD and self._start():
                pass
            yield from self._drain()
            if not self._waiting:
                return
            yield from self._run_lane(max(self._lanes, key=lambda lane: len(self._lanes[lane])))

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._lanes.values()))

    def _run_lane(self, lane: tuple[str, Hashable]) -> Iterator[tuple[Order, Result | Filled | Exception]]:
        running: list[_Open] = []
        queue = self._lanes[lane]

        def pull() -> Any:
            while not queue and self._waiting < AHEAD and self._start():
                pass
            if not queue:
                return None
            running.append(queue.popleft())
            return running[-1].asked

        options, answered = queue[0].order.options, set[int]()
        try:
            for number, answer in self._kit.way(options).flow(lane[1], pull, options):
                answered.add(number)
                self._take(running[number], answer)
                yield from self._drain()
        except BaseException as error:
            if stops(error):
                raise
            left = [each for number, each in enumerate(running) if number not in answered]
            self._alone(left, lane, error)
            yield from self._drain()
        if not queue:
            del self._lanes[lane]

    def _take(self, opened: _Open, answer: Answer | Exception) -> None:
        if isinstance(answer, Exception):
            self._finished.append((opened.order, answer))
        else:
            self._go_on(opened, answer)

    def _alone(self, left: list[_Open], lane: tuple[str, Hashable], error: BaseException) -> None:
        """Answer each of several questions by itself after an error, which then is that of one of them."""
        for opened in left:
            options, once = opened.order.options, iter((opened.asked, None))
            try:
                if len(left) == 1:
                    raise error
                for _, answer in self._kit.way(options).flow(lane[1], partial(next, once, None), options):
                    self._take(opened, answer)
            except BaseException as own:
                if stops(own):
                    raise
                self._finished.append((opened.order, as_exception(own)))

    def _start(self) -> bool:
        """Lay out the next order; False if there is none."""
        order = next(self._orders, None)
        if order is None:
            return False
        self._go_on(_Open(order, self._kit.writing(order)), None)
        return True

    def _go_on(self, opened: _Open, answer: Answer | None) -> None:
        """Give an answer, and take the next question or the result."""
        options = opened.order.options
        try:
            with one_thread():
                opened.asked = opened.writing.send(answer)  # type: ignore[arg-type]
            way = self._kit.way(options)
            # Ways are told apart too: what is a lane to one may be one to the other.
            lane = (type(way).__name__, way.lane(opened.asked, options))
            self._lanes.setdefault(lane, deque()).append(opened)
        except StopIteration as end:
            self._finished.append((opened.order, end.value))
        except BaseException as error:
            if stops(error):
                raise
            self._finished.append((opened.order, as_exception(error)))

    def _drain(self) -> Iterator[tuple[Order, Result | Filled | Exception]]:
        while self._finished:
            yield self._finished.popleft()
