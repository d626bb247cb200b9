"""Ctrl-C and SIGTERM as a flag that every row looks at: an exception alone can get lost in a destructor."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class Signals:
    """While it is entered, a signal is noted before it interrupts as it did; what is noted interrupts again."""

    def __init__(self) -> None:
        self._come: list[int] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Note signals, where that is possible: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        """Leave signals to whoever had them."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def check(self) -> None:
        """KeyboardInterrupt if a signal has come, whatever became of the exception that it raised."""
        if self._come:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._come.append(number)
        self._handlers[number](number, frame)
