"""Measure scoring: candidates a second in one call against one call each, in processor time and on the clock.

Run: python benchmarks/scoring.py [--model emoji] [--candidates 32]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import cm3kit
from cm3kit.fill.kit import GenerateOptions
from cm3kit_tokenizers.page import Page

WORDS = "red green blue yellow big small old young happy sad round square wooden golden broken new".split()
THINGS = ("apple", "pear", "house", "face", "cat", "dog", "ball", "car")
TEXT = "There is a picture of it on every page of the book, and a word that says what it is. "


def timed(run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The best of some rounds: seconds of the processor, and on the clock."""
    found = []
    for _ in range(rounds):
        cpu, clock = time.process_time(), time.perf_counter()
        run()
        found.append((time.process_time() - cpu, time.perf_counter() - clock))
    return min(found)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pictures")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    kit = cm3kit.load(given.model, device="cpu")
    answers = [f"{word} {thing}" for word in WORDS for thing in THINGS][: given.candidates]
    for sentences in (1, 8, 24):
        page = Page.parse(f"<p>{TEXT * sentences}</p><p>It is a <mask>.</p>".encode())
        for decoder in kit.parts.defaults.decoders:
            options = GenerateOptions(decoder=decoder)
            kit.score(page, answers[:1], options=options)
            one, clock = timed(lambda: kit.score(page, answers, options=options), given.rounds)  # noqa: B023
            each, slow = timed(
                lambda: [kit.score(page, [answer], options=options) for answer in answers],  # noqa: B023
                given.rounds,
            )
            count, ids = len(answers), len(kit.tokenizer.encode(page.nodes()))
            print(
                f"{decoder:9} page of {ids:4} ids: {count / one:7.1f} answers/s together, {count / each:6.1f} by one:"
                f" {each / one:.1f} times (clock: {slow / clock:.1f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
