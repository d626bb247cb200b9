"""One model, many clients: requests are worked off one after the other, in the order in which they came."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from cm3kit.pipelines.kit import Kit
from cm3kit.serving.auth import refused
from cm3kit_tokenizers.errors import Cm3kitError

Hear = Callable[[str, Mapping[str, Any]], None]
Answer = Mapping[str, Any]
Work = Callable[[Kit, Callable[[int, int], None]], Answer]
SECONDS_BETWEEN = 0.1
log = logging.getLogger("cm3kit.serving")


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


class ModelQueue:
    """The model and the line before it; torch runs in one thread, the server in another."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.waiting = 0

    async def ask(self, work: Work, hear: Hear = lambda kind, data: None) -> Answer:
        """The answer of `work`; `hear` learns of the place in line and of progress, in the server's thread.

        Raises:
            Cm3kitError: whatever `work` raises.
        """
        loop, gone = asyncio.get_running_loop(), threading.Event()
        hear("queued", {"before": self.waiting})
        self.waiting += 1

        told = 0.0

        def watch(done: int, total: int) -> None:
            nonlocal told
            if gone.is_set():
                raise Cancelled
            now = time.monotonic()
            if now - told >= SECONDS_BETWEEN:
                told = now
                loop.call_soon_threadsafe(hear, "progress", {"done": done, "total": total})

        def run() -> Answer:
            if gone.is_set():
                raise Cancelled
            return work(self.kit, watch)

        try:
            return await loop.run_in_executor(self._thread, run)
        except asyncio.CancelledError:
            gone.set()
            raise
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Take no more work."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def answer(self, work: Work) -> Response:
        """The answer as one JSON object."""
        try:
            return JSONResponse(await self.ask(work))
        except Exception as error:  # noqa: BLE001 - the edge: whatever went wrong becomes an answer
            return failure(error)

    def stream(self, work: Work, last: str | None = None) -> Response:
        """Progress and the answer as server-sent events: `queued`, `progress`, then `result` or `error`."""
        return StreamingResponse(self._events(work, last), media_type="text/event-stream")

    async def _events(self, work: Work, last: str | None) -> AsyncIterator[str]:
        heard: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        asked = asyncio.ensure_future(self.ask(work, lambda kind, data: heard.put_nowait((kind, data))))
        asked.add_done_callback(lambda _: heard.put_nowait(None))
        try:
            while (each := await heard.get()) is not None:
                if last is None:
                    yield event(*each)
            try:
                yield (
                    event("result", asked.result())
                    if last is None
                    else f"data: {json.dumps(asked.result())}\n\n"
                )
            except Exception as error:  # noqa: BLE001 - the edge, as in `answer`
                told = json.loads(bytes(failure(error).body))
                yield event("error", told)
            if last is not None:
                yield f"data: {last}\n\n"
        finally:
            asked.cancel()


def event(kind: str, data: Any) -> str:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def failure(error: BaseException) -> Response:
    """What went wrong, in one line: 400 for what the client can change, 500 for a bug."""
    if isinstance(error, Cm3kitError):
        return refused(400, error.code, str(error.args[0]))
    log.error("a request failed", exc_info=error)
    return refused(500, "internal", f"unexpected {type(error).__name__}; the server's log has more")
