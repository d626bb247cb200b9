"""A `cm3kit generate` from its start to the picture: seconds, processor seconds and memory, idle and beside others.

    python benchmarks/start.py [--rounds 3] [--busy 1]

Rows: `import torch` alone; the command as it is; with OpenMP's threads waiting as libgomp has them by itself (300,000
looks before they sleep); on one thread. `--busy N` keeps N processors busy meanwhile, at the same priority.
Rounds are interleaved, and medians printed, of a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

LOOP = "while True: pass"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pictures")
    parser.add_argument("--prompt", default="red apple")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0)
    args = parser.parse_args()
    seen: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, busy(args.busy):
        asked = [
            args.prompt,
            "-m",
            args.model,
            "--seed",
            "1",
            "-o",
            f"{folder}/picture.png",
            "--force",
            "--quiet",
        ]
        command = [sys.executable, "-m", "cm3kit_cli", "generate", *asked]
        for _ in range(args.rounds):
            seen["`import torch`"].append(measure([sys.executable, "-c", "import torch"], {}))
            seen["generate"].append(measure(command, {}))
            seen["generate, waiting as libgomp does"].append(measure(command, {"GOMP_SPINCOUNT": "300000"}))
            seen["generate, one thread"].append(measure(command, {"OMP_NUM_THREADS": "1"}))
    print("| process | processor s | s | MB |\n|---|---|---|---|")
    for name, runs in seen.items():
        processor, wall, memory = (statistics.median(run[i] for run in runs) for i in range(3))
        print(f"| {name} | {processor:.1f} | {wall:.1f} | {memory:.0f} |")


def measure(command: list[str], settings: dict[str, str]) -> tuple[float, float, float]:
    """Processor seconds, seconds and peak MB of a process, which must succeed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    start = time.monotonic()
    process = subprocess.Popen(command, env=plain | settings, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - start, usage.ru_maxrss / 1024


@contextmanager
def busy(number: int) -> Iterator[None]:
    """`number` processes that do nothing else than keep a processor each."""
    others = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    main()
