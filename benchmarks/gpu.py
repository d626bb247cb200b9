"""What cm3kit does on a GPU, in one command: what the machine can do, training, pictures, correctness, decoding.

python benchmarks/gpu.py -o FOLDER [--budget 240] [--parts training,pictures] [--lanes 3] [--tiny]

Needs no network and no data. Every setting runs with a limit of its own in a process that is replaced when it
fails hard or hangs, so a failing setting costs only itself. `results.json` is written after each one. With several
lanes, settings compile and prepare side by side and measure in turn. `--tiny` takes tiny sizes, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu_units import PARTS, Unit, units

HERE = Path(__file__).resolve().parent
MARK = "\x1eresult "
LEAST = 4.0  # seconds: less is not enough to begin with a setting


class Book:
    """All results so far, on disk after each."""

    def __init__(self, folder: Path, asked: list[Unit], budget: float) -> None:
        self.folder, self.asked = folder, asked
        self.end = time.monotonic() + budget
        self.found: dict[str, dict[str, Any]] = {}
        self.machine: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._start = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def add(self, unit: Unit, result: dict[str, Any]) -> None:
        """Keep a result, and say it."""
        with self._lock:
            result["at"] = round(time.monotonic() - self._start, 1)
            self.found[unit.key] = result
            text = json.dumps({"machine": self.machine, "results": self.found}, indent=1)
            half = self.folder / ".results.half"
            half.write_text(text)
            half.replace(self.folder / "results.json")
            print(line(unit, result), flush=True)


def line(unit: Unit, result: dict[str, Any]) -> str:
    """A row of the table."""
    if "skipped" in result:
        return f"| {unit.key} | skipped: {result['skipped']} |"
    if "failed" in result:
        return f"| {unit.key} | FAILED: {' / '.join(result['failed'][-3:])[:600]} |"
    cells = [
        f"{name} {_plain(value)}" for name, value in result["found"].items() if not isinstance(value, dict)
    ]
    return f"| {unit.key} | {'; '.join(cells)[:900]} | {result['seconds']:.1f} s |"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value[:4])) + (", …]" if len(value) > 4 else "]")
    return str(value)


class Lane:
    """One process at a time that takes units from a queue."""

    def __init__(self, number: int, book: Book, tiny: bool, scratch: Path, lanes: int = 1) -> None:
        self.number, self.book, self.tiny, self.scratch = number, book, tiny, scratch
        # What one lane compiles must not take the processors of one that measures.
        share = max(1, (os.cpu_count() or 1) // lanes - 1)
        own = {"TORCHINDUCTOR_COMPILE_THREADS": str(share)} if lanes > 1 else {}
        self.environment = own | dict(os.environ)
        self.worker: subprocess.Popen[str] | None = None
        self.logged = 0
        self.answers: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def run(self, waiting: queue.Queue[Unit]) -> None:
        """Until nothing waits, or the time is over."""
        while True:
            try:
                unit = waiting.get_nowait()
            except queue.Empty:
                break
            if self.book.left < LEAST:
                self.book.add(unit, {"skipped": "the time is over"})
            elif unit.cuda and self.tiny:
                self.book.add(unit, {"skipped": "needs a GPU"})
            else:
                self.book.add(unit, self._result(unit))
        self.stop()

    def _result(self, unit: Unit) -> dict[str, Any]:
        worker, start = self._ready(), time.monotonic()
        limit = min(unit.limit, self.book.left)
        try:
            assert worker.stdin is not None
            worker.stdin.write(json.dumps([unit.function, unit.options]) + "\n")
            worker.stdin.flush()
            answer = self.answers.get(timeout=max(0.1, limit))
        except queue.Empty:
            self.stop()
            if limit < unit.limit:
                return {"skipped": f"cut off after {limit:.0f} s, when the time was over"}
            return {"failed": [f"no answer after its limit of {limit:.0f} s"], "seconds": limit}
        except OSError:
            answer = None
        seconds = time.monotonic() - start
        if answer is None:
            code = worker.wait()
            self.stop()
            return {"failed": [f"its process ended with {code}", *self._told()[-8:]], "seconds": seconds}
        if answer.pop("broken", False):
            self.stop()
        return {**answer, "seconds": seconds}

    @property
    def _log(self) -> Path:
        return self.book.folder / f"lane-{self.number}.log"

    def _told(self) -> list[str]:
        """What this process has logged."""
        return self._log.read_bytes()[self.logged :].decode(errors="replace").splitlines()

    def _ready(self) -> subprocess.Popen[str]:
        if self.worker is None:
            log = open(self._log, "a")
            self.logged = log.tell()
            tiny = ["--tiny"] if self.tiny else []
            self.worker = subprocess.Popen(
                [sys.executable, str(HERE / "gpu_worker.py"), str(self.scratch), *tiny],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
                env=self.environment,
            )  # fmt: skip
            log.close()
            self.answers = queue.Queue()
            threading.Thread(target=self._listen, args=(self.worker, self.answers), daemon=True).start()
        return self.worker

    def _listen(self, worker: subprocess.Popen[str], answers: queue.Queue[dict[str, Any] | None]) -> None:
        assert worker.stdout is not None
        with worker.stdout:
            for text in worker.stdout:
                if text.startswith(MARK):
                    answer = json.loads(text.removeprefix(MARK))
                    self.book.machine |= answer.pop("machine", {})
                    if answer:
                        answers.put(answer)
        answers.put(None)

    def stop(self) -> None:
        """End the process and those that it has started."""
        if self.worker is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.worker.pid, signal.SIGKILL)
            self.worker.wait()
            if self.worker.stdin is not None:
                with suppress(OSError):
                    self.worker.stdin.close()
            self.worker = None


def measure(folder: Path, asked: list[Unit], budget: float, lanes: int, tiny: bool) -> Book:
    """Run all units in their order, as far as the time goes."""
    folder.mkdir(parents=True, exist_ok=True)
    book, waiting = Book(folder, asked, budget), queue.Queue[Unit]()
    for unit in asked:
        waiting.put(unit)
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        runners = [Lane(number, book, tiny, Path(scratch), lanes) for number in range(lanes)]
        threads = [threading.Thread(target=each.run, args=(waiting,)) for each in runners]
        try:
            for each in threads:
                each.start()
            for each in threads:
                each.join()
        finally:
            book.end = 0.0
            for runner in runners:
                runner.stop()
    return book


def table(book: Book) -> str:
    """All results in the order of the units, and what was left out."""
    lines = ["| setting | result | took |", "|---|---|---|"]
    lines += [line(unit, book.found[unit.key]) for unit in book.asked if unit.key in book.found]
    for kind in ("failed", "skipped"):
        named = [key for key, result in book.found.items() if kind in result]
        lines.append(f"{kind}: {len(named)} of {len(book.asked)}{': ' + '; '.join(named) if named else ''}")
    return "\n".join([json.dumps(book.machine), *lines])


def main() -> int:
    """Measure, and print the table; 1 if anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--budget", type=float, default=240.0, help="seconds for everything")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, in which order")
    parser.add_argument("--only", default="", help="only settings whose name holds this")
    parser.add_argument("--lanes", type=int, default=1, help="processes that prepare side by side")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on the CPU")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *given: sys.exit(143))
    parts = tuple(args.parts.split(","))
    if unknown := [each for each in parts if each not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    asked = [unit for unit in units(parts, args.tiny) if args.only in unit.key]
    book = measure(args.output, asked, args.budget, args.lanes, args.tiny)
    told = table(book)
    (args.output / "table.md").write_text(told + "\n")
    print("\n" + told)
    return int(any("failed" in each for each in book.found.values()))


if __name__ == "__main__":
    sys.exit(main())
