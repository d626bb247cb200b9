"""Make many outputs of every kind, then make each of them again by its recipe, in another process, and compare.

    python benchmarks/reproduce.py -m pictures -n 200 --decoders cm3

Half of them are pictures, the rest words, captions, pages and filled pages in equal parts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cm3kit_cli.main import run

ROOT = Path(__file__).parents[1]
PROMPTS = ("red apple", "blue heart", "grinning face", "banana", "dog", "sun", "house", "tree")


def make(folder: Path, model: str, count: int, decoder: str) -> None:
    def command(*arguments: str) -> None:
        more = ["--decoder", decoder, "-m", model, "-q", "--no-grid"] if arguments[0] == "generate" else []
        more = more or ["--decoder", decoder, "-m", model, "-q"]
        if run([*arguments, *more]):
            raise SystemExit(f"{arguments} failed")

    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    pictures, others = max(1, count // 2 // len(PROMPTS)), max(1, count // 2 // 4)
    command(
        "generate", "--prompt-file", str(prompts), "-n", str(pictures), "--seed", "1", "-o", f"{folder}/a/"
    )
    command("generate", "--task", "text", "red apple", "-n", str(others), "--seed", "2", "-o", f"{folder}/b/")
    picture = str(next((folder / "a").glob("0*.png")))
    command("generate", "--task", "caption", picture, "-n", str(others), "--seed", "3", "-o", f"{folder}/c/")
    page = str(ROOT / "samples/apple.html")
    command("infill", page, "--variants", str(others), "--seed", "4", "-o", f"{folder}/d/")
    if decoder == "cm3":
        task = ["generate", "--task", "document"]
        command(*task, "red apple", "-n", str(others), "--seed", "5", "-o", f"{folder}/e/")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default="pictures")
    parser.add_argument("-n", type=int, default=1000, help="outputs a decoder")
    parser.add_argument("--decoders", nargs="+", default=["cm3"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for decoder in given.decoders:
            folder = Path(name) / decoder
            folder.mkdir()
            started = time.perf_counter()
            make(folder, given.model, given.n, decoder)
            made = time.perf_counter()
            runs = [str(path.parent) for path in sorted(folder.glob("*/manifest.jsonl"))]
            check = [sys.executable, "-m", "cm3kit_cli", "reproduce", *runs, "--check", "--json", "-q"]
            answer = subprocess.run(check, capture_output=True, text=True, check=False)
            data = json.loads(answer.stdout)["data"]
            same = sum(each["verdict"] == "same" for each in data["files"])
            took = time.perf_counter()
            print(
                f"{decoder}: {len(data['files'])} outputs, {same} the same byte for byte,"
                f" {data['different']} different;"
                f" made in {made - started:.0f} s, checked in {took - made:.0f} s",
                flush=True,
            )
            for each in data["files"]:
                if each["verdict"] != "same":
                    print(" ", each["path"], each["verdict"], *each["reasons"])


if __name__ == "__main__":
    main()
