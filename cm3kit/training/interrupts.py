"""Signals that wait for the end of a training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Paused(KeyboardInterrupt):
    """Training was asked to stop, and has saved its state: the same call resumes from there."""


@contextmanager
def interrupts_wait() -> Iterator[list[int]]:
    """Delay Ctrl-C and SIGTERM to the end of a step, so that the saved state is of one step; a second stops at once.

    Yields the signals that have come.
    """
    waiting: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield waiting
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: old for number in numbers if callable(old := signal.getsignal(number))}

    def note(number: int, frame: FrameType | None) -> None:
        if waiting:
            raise KeyboardInterrupt
        waiting.append(number)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield waiting
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if waiting:
        handlers[signal.Signals(waiting[0])](waiting[0], None)
