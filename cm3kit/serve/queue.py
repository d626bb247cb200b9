"""One model, many clients: requests run one at a time, in the order of arrival."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from cm3kit.fill.kit import Kit
from cm3kit.serve.auth import refused
from cm3kit_tokenizers.errors import Cm3kitError, stops

Hear = Callable[[str, Mapping[str, Any]], None]
Answer = Mapping[str, Any]
Work = Callable[[Kit, Callable[[int, int], None]], Answer]
Chunks = Callable[[Answer], Iterable[Mapping[str, Any]]]
SECONDS_BETWEEN = 0.1
GONE = 499
"""The status of a response whose client has disconnected."""
log = logging.getLogger("cm3kit.serve")


class Cancelled(Exception):
    """The client has disconnected."""


class ModelQueue:
    """The model and its queue; torch runs in one thread, the server in another."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._closed, self._idle = threading.Event(), threading.Event()
        self._idle.set()
        self.waiting = 0

    async def ask(self, work: Work, hear: Hear = lambda kind, data: None) -> Answer:
        """Run `work` and return its response; `hear` gets queue position and progress, in the server's thread.

        Raises:
            Cm3kitError: errors of `work`.
        """
        loop, gone = asyncio.get_running_loop(), threading.Event()
        hear("queued", {"before": self.waiting})
        self.waiting += 1

        told = 0.0

        def watch(done: int, total: int) -> None:
            nonlocal told
            if gone.is_set() or self._closed.is_set():
                raise Cancelled
            now = time.monotonic()
            if now - told >= SECONDS_BETWEEN:
                told = now
                loop.call_soon_threadsafe(hear, "progress", {"done": done, "total": total})

        def run() -> Answer:
            if gone.is_set() or self._closed.is_set():
                raise Cancelled
            self._idle.clear()
            try:
                return work(self.kit, watch)
            finally:
                self._idle.set()

        try:
            return await loop.run_in_executor(self._thread, run)
        except asyncio.CancelledError:
            gone.set()
            raise
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Refuse further requests, and stop the running one at its next step."""
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def rested(self, seconds: float) -> bool:
        """Wait up to `seconds` for the running request; whether it has ended."""
        return self._idle.wait(seconds)

    async def answer(self, work: Work, request: Request) -> Response:
        """The response as one JSON object; the work stops when the client disconnects."""
        asked = asyncio.ensure_future(self.ask(work))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                return Response(status_code=GONE)
            return JSONResponse(asked.result())
        except BaseException as error:
            if stops(error) and not isinstance(error, MemoryError):
                raise
            return failure(error)
        finally:
            asked.cancel()
            gone.cancel()

    def stream(self, work: Work, chunks: Chunks | None = None) -> Response:
        """Progress and the response as server-sent events: `queued`, `progress`, then `result` or `error`.

        With `chunks` the response has the format of OpenAI's streams: only the chunks, then `[DONE]`.
        """
        return StreamingResponse(self._events(work, chunks), media_type="text/event-stream")

    async def _events(self, work: Work, chunks: Chunks | None) -> AsyncIterator[str]:
        heard: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        asked = asyncio.ensure_future(self.ask(work, lambda kind, data: heard.put_nowait((kind, data))))
        asked.add_done_callback(lambda _: heard.put_nowait(None))
        try:
            while (each := await heard.get()) is not None:
                if chunks is None:
                    yield event(*each)
            try:
                answer = asked.result()
            except BaseException as error:
                if stops(error) and not isinstance(error, MemoryError):
                    raise
                reply = failure(error)
                if not reply.body:  # the client has disconnected
                    return
                told = json.loads(bytes(reply.body))
                yield event("error", told) if chunks is None else f"data: {json.dumps(told)}\n\n"
                return
            if chunks is None:
                yield event("result", answer)
                return
            for chunk in chunks(answer):
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            asked.cancel()


async def _gone(request: Request) -> None:
    """Wait until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event(kind: str, data: Any) -> str:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def failure(error: BaseException) -> Response:
    """The response for an error: 404 for an unknown model, 400 for other errors of the request, 500 for a bug."""
    if isinstance(error, Cm3kitError):
        if error.code == "unknown_model":
            return refused(404, "model_not_found", str(error.args[0]))
        return refused(400, error.code, str(error.args[0]))
    if isinstance(error, ClientDisconnect | Cancelled):
        return Response(status_code=GONE)
    log.error("a request failed", exc_info=error)
    return refused(500, "internal", f"unexpected {type(error).__name__}; the server's log has more")
