"""Seconds from Ctrl-C to the end of each command while it works, and its exit status.

`python benchmarks/interrupts.py` starts every command that takes time, waits a little, sends SIGINT to
it alone, and reports. A command that ends by itself before says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "generate": "generate 'red apple' -n 400 -o {out}/g/",
    "generate --decoder diffusion": "generate 'red apple' -n 400 --decoder diffusion -o {out}/d/",
    "infill": "infill {samples}/apple.html --variants 200 -o {out}/i/",
    "sample run": "sample run {out}/rows.txt -o {out}/s/ --seed 1",
    "sample run, 2 processes": "sample run {out}/rows.txt -o {out}/s2/ --seed 1 --num-processes 2",
    "score": "score {out}/gap.html --answers {out}/answers.txt",
    "train text": "train text --set data={pages} -o {out}/text",
    "train vqgan": "train vqgan -c emoji-vqgan --set data={pages} -o {out}/vqgan",
    "train cm3": "train cm3 --from pictures --set data={pages} -o {out}/cm3",
    "train cm3, 2 processes": "train cm3 --from pictures --set data={pages} -o {out}/cm32 --num-processes 2"
    " --device cpu",
    "train all": "train all {pages} -o {out}/all --preset tiny",
    "data prepare": "data prepare {out}/site -o {out}/prepared --workers 2",
    "tokenize image": "tokenize image {out}/pictures -o {out}/codes -m pictures",
    "eval recon": "eval recon {out}/pictures -m pictures",
    "eval model": "eval model {pages} -m pictures --split train --limit 5000",
    "serve": "serve -m pictures --port 0",
}


def fill(out: Path) -> None:
    """Inputs that take long enough."""
    from PIL import Image

    (out / "rows.txt").write_text("red apple\n" * 2000)
    (out / "gap.html").write_text("<h1>red apple</h1><p><mask></p>")
    (out / "answers.txt").write_text("".join(f"a fruit of kind {number}\n" for number in range(20_000)))
    for folder in ("site", "pictures"):
        (out / folder).mkdir()
    for number in range(1500):
        words = "".join(f"<p>Line {line} of page {number}.</p>" for line in range(300))
        (out / f"site/{number}.html").write_text(f"<h1>Page {number}</h1>{words}")
    for number in range(3000):
        Image.new("RGB", (64, 64), (number % 256, number // 12 % 256, 90)).save(
            out / f"pictures/{number}.png"
        )


def measure(name: str, line: str, out: Path, wait: float) -> str:
    """One row of the table."""
    places = {"out": out, "samples": ROOT / "samples", "pages": ROOT / "samples/pages"}
    command = f"exec {sys.executable} -m cm3kit_cli {line.format(**places)}"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "cli", ROOT / "tokenizers")))
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=out, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    time.sleep(wait)
    if process.poll() is not None:
        return f"| {name} | ended before, status {process.returncode} | |"
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"| {name} | over 120 | killed |"
    took = time.monotonic() - start
    last = said.strip().splitlines()[-1][:90] if said.strip() else ""
    return f"| {name} | {took:.2f} | {process.returncode}: {last} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wait", type=float, default=15.0, help="seconds that a command works before")
    parser.add_argument("--only", default="", help="names that hold this")
    given = parser.parse_args()
    out = Path(tempfile.mkdtemp(prefix="interrupts-"))
    fill(out)
    print("| command | seconds | status and last line |\n|---|---|---|")
    for name, line in COMMANDS.items():
        if given.only in name:
            print(measure(name, line, out, given.wait), flush=True)
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
