"""Worker processes that prepare parts: a page that hangs or crashes its process is dropped with a reason.

A worker reports every page before it reads it. If the process dies or spends too long on one page, a new process
prepares the part again without that page. When the parent is killed, its workers end at their next page.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from cm3kit.temporaries import sweep
from cm3kit.web.job import Job
from cm3kit.web.sources import Piece
from cm3kit_tokenizers.errors import Cm3kitError, DataError

Warn = Callable[[str], None]
RunPiece = Callable[[Job, int, Piece, Mapping[str, str], Callable[[str], None]], "dict[str, Any] | None"]
"""`runner.run_piece`; it has to be a function of a module, as processes import it."""
_SOURCE_SECONDS = 900.0  # to find the next page, in a large archive
_DEATHS = 3
_PATIENCE = 6.0  # times the limit of a page in wall time, for a process that got little CPU time


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    run_piece: RunPiece
    number: int = -1
    piece: Piece | None = None
    key: str = ""
    since: float = field(default_factory=time.monotonic)
    spent: float = 0.0


def run_in_processes(
    job: Job, todo: list[tuple[int, Piece]], workers: int, run_piece: RunPiece, warn: Warn
) -> Iterator[dict[str, Any]]:
    """Prepare the parts of `todo` by `run_piece`, and yield the counts of each when it is done."""
    waiting = list(reversed(todo))
    given_up: dict[int, dict[str, str]] = {}
    deaths: dict[int, int] = {}
    pool = [_start(job, run_piece) for _ in range(min(workers, len(todo)))]
    try:
        for worker in pool:
            _give(worker, waiting, given_up)
        while any(each.piece is not None for each in pool):
            busy = {each.pipe: each for each in pool if each.piece is not None}
            for pipe in wait(list(busy), timeout=0.5):
                worker = busy[pipe]  # type: ignore[index]
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, OSError):
                    _replace(worker, job, "crashed", given_up, deaths, warn)
                    continue
                worker.since = time.monotonic()
                if kind == "page":
                    worker.key, worker.spent = value, _processor_time(worker.process.pid)
                elif kind == "failed":
                    raise value
                else:
                    if value is not None:
                        yield value
                    _give(worker, waiting, given_up)
            for worker in busy.values():
                if worker.piece is not None and _late(worker, job.settings.seconds):
                    _replace(worker, job, "too_slow", given_up, deaths, warn)
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        sweep(job.output / "parts")


def _late(worker: _Worker, seconds: float) -> bool:
    """Whether a worker exceeds the time limit of its page, or of finding the next one.

    The limit is in CPU time, so that a busy machine drops the same pages as an idle one.
    """
    waited = time.monotonic() - worker.since
    if not worker.key:
        return waited > _SOURCE_SECONDS
    if waited <= seconds or waited > _PATIENCE * seconds:
        return waited > seconds
    return _processor_time(worker.process.pid) - worker.spent > seconds


def _processor_time(process: int) -> float:
    """CPU seconds of a process; wall time if the system does not report them."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
    except (OSError, ValueError):
        return time.monotonic()
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _start(job: Job, run_piece: RunPiece) -> _Worker:
    # spawn: a fork would copy locks that other threads hold.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, job, run_piece), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here, run_piece)


def _give(worker: _Worker, waiting: list[tuple[int, Piece]], given_up: dict[int, dict[str, str]]) -> None:
    worker.piece, worker.key, worker.since = None, "", time.monotonic()
    if waiting:
        worker.number, worker.piece = waiting.pop()
        with suppress(OSError):  # a dead worker is noticed when its pipe is read
            worker.pipe.send((worker.number, worker.piece, given_up.get(worker.number, {})))


def _replace(
    worker: _Worker,
    job: Job,
    reason: str,
    given_up: dict[int, dict[str, str]],
    deaths: dict[int, int],
    warn: Warn,
) -> None:
    """End a worker, and start a new one on the same part without the current page."""
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()
    number, piece = worker.number, worker.piece
    if worker.key:
        warn(f"{worker.key} is dropped: {reason}")
        given_up.setdefault(number, {})[worker.key] = reason
    else:
        deaths[number] = deaths.get(number, 0) + 1
        if deaths[number] == _DEATHS:
            place = piece.place if piece else ""
            raise DataError(f"{place} cannot be read: the process that opens it died.", code="bad_data")
    fresh = _start(job, worker.run_piece)
    worker.process, worker.pipe, worker.key = fresh.process, fresh.pipe, ""
    _give(worker, [(number, piece)] if piece else [], given_up)


def _work(pipe: Connection, job: Job, run_piece: RunPiece) -> None:
    """Main loop of a worker: prepare parts until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit = job.settings.memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        while True:
            number, piece, given_up = pipe.recv()
            try:
                counts = run_piece(job, number, piece, given_up, lambda key: pipe.send(("page", key)))
                pipe.send(("done", counts))
            except (EOFError, BrokenPipeError):
                return
            except BaseException as error:  # noqa: BLE001 - the parent raises it
                pipe.send(("failed", _plain(error)))
    except (EOFError, OSError):
        return


def _plain(error: BaseException) -> Exception:
    """A user's error itself; for others their name and message, since not every exception can be pickled."""
    if isinstance(error, Cm3kitError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    return RuntimeError(f"{type(error).__name__}: {error}")
