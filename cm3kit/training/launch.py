"""Several training processes on one machine, as torchrun starts them, with one exit status for all."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO

from cm3kit.devices import processors

_PR_SET_PDEATHSIG = 1
GRACE = 30.0  # seconds that processes have to end by themselves once one of them has failed or all are asked to stop


def launch(command: Sequence[str], processes: int) -> int:
    """Run a command as so many processes that train together, and return the exit status of what they did.

    Only the output of the main one (`RANK` 0) is shown; of another that fails first, its standard error. Ctrl-C and
    SIGTERM go to all of them. If one fails the others are ended, as they would wait for it forever.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, processors() // processes)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    common |= {
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    with tempfile.TemporaryDirectory() as folder:
        heard = [_errors_of(folder, rank) for rank in range(processes)]
        running: list[subprocess.Popen[bytes]] = []
        with _passing_on_signals(running):
            try:
                for rank in range(processes):
                    environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    running.append(
                        subprocess.Popen(
                            command,
                            env=environment,
                            stdout=None if rank == 0 else subprocess.DEVNULL,
                            stderr=heard[rank],
                            process_group=0,  # a Ctrl-C of the terminal comes once, from us
                            preexec_fn=_stop_with_the_launcher,
                        )
                    )
                return _first_failure(running, heard)
            finally:
                _end(running)
                for each in heard:
                    if each is not None:
                        each.close()


def _stop_with_the_launcher() -> None:
    """Have the kernel send SIGTERM to this process if the launcher ends, so that it does not train on (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _errors_of(folder: str, rank: int) -> IO[bytes] | None:
    return None if rank == 0 else open(os.path.join(folder, str(rank)), "w+b")


def _first_failure(running: list[subprocess.Popen[bytes]], heard: list[IO[bytes] | None]) -> int:
    """Wait for all, or for the first that fails; 0, or the status of that one."""
    while True:
        statuses = [each.poll() for each in running]
        failed = [rank for rank, status in enumerate(statuses) if status]
        if failed:
            # Processes that stop together do not end at the same moment, and the main one reports the reason.
            deadline = time.monotonic() + (GRACE if running[failed[0]].returncode == 3 else 2.0)
            while running[0].poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            rank = 0 if running[0].returncode else failed[0]
            _show(heard[rank])
            status = running[rank].returncode
            return int(status) if status > 0 else 128 - int(status)
        if all(status == 0 for status in statuses):
            return 0
        time.sleep(0.02)


def _show(errors: IO[bytes] | None) -> None:
    if errors is not None:
        errors.seek(0)
        sys.stderr.write(errors.read().decode(errors="replace"))
        sys.stderr.flush()


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    """Terminate those that still run, and kill them after the grace period."""
    for each in running:
        if each.poll() is None:
            each.terminate()
    deadline = time.monotonic() + GRACE
    for each in running:
        try:
            each.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.kill()
            each.wait()


@contextmanager
def _passing_on_signals(running: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        for each in running:
            if each.poll() is None:
                each.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
