"""How left to right the diffusion decoder writes pictures and words, at several temperatures.

    python benchmarks/arness.py --model checkpoints/pictures --data data/emoji [--names 24]

One slot a pass, the surest first, as DiffuCoder's study has it (arXiv:2506.20639, sec. 4). Prints a Markdown table: the
mean over all rows of local and global AR-ness at 1 and 4, and the share of rows that ended in a distinct result.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import cm3kit
from cm3kit.data.dictionary import Entry, load_entries
from cm3kit.decoders.diffusion.axes import Choice
from cm3kit.evaluation.arness import Arness, arness
from cm3kit.fill.kit import GenerateOptions, Kit, Result

CODES, SLOTS = 64, 16


def options(kit: Kit, temperature: float, slots: int, confidence: str) -> GenerateOptions:
    """One slot a pass, of the whole board or of a block, if the model was trained in blocks."""
    block = kit.parts.defaults.diffusion.trained_block
    free = () if block else ("block_size=null",)  # that of the model's defaults
    order: Choice = {"name": "probability"}
    return GenerateOptions(
        decoder="diffusion", sampler="uniform" if confidence == "base" else "diffucoder", steps=block or slots,
        schedule="uniform", order=order, eoser=False, temperature=temperature, top_p=1.0, batch_size=1,
        overrides=free,
    )  # fmt: skip


def measured(results: Sequence[Result], kind: str) -> list[Arness]:
    """AR-ness of what was written in each row."""
    return [arness(each.trace.trajectories[-1], (1, 4))[kind] for each in results if each.trace]  # type: ignore[index]


def line(name: str, temperature: float, confidence: str, rows: Sequence[Arness], distinct: float) -> str:
    def mean(of: Callable[[Arness], float | None]) -> str:
        known = [value for value in map(of, rows) if value is not None]
        return f"{sum(known) / len(known):.2f}" if known else "–"

    figures = [mean(lambda row, k=k: row.local_at[k]) for k in (1, 4)]
    figures += [mean(lambda row, k=k: row.global_at[k]) for k in (1, 4)]
    return f"| {name} | {temperature} | {confidence} | {' | '.join(figures)} | {distinct:.0%} |"


def rows_of(kit: Kit, entries: Sequence[Entry], data: Path, how: tuple[float, str]) -> list[str]:
    drawn: list[Result] = []
    told: list[Result] = []
    for entry in entries:
        drawn += kit.generate(entry.name, n=2, seed=3, options=options(kit, how[0], CODES, how[1]))
        picture = data / "pictures" / f"{entry.slug}.png"
        told += kit.generate(
            picture, task="caption", n=2, seed=3, options=options(kit, how[0], SLOTS, how[1])
        )
    looks = [each.image.tobytes() for each in drawn if each.image]
    words = [(index // 2, each.text) for index, each in enumerate(told)]
    return [
        line("pictures", *how, measured(drawn, "image"), len(set(looks)) / len(looks)),
        line("captions", *how, measured(told, "text"), len(set(words)) / len(words)),
    ]


def main() -> None:
    """Write pictures from names and captions from pictures, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pictures")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--names", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kit = cm3kit.load(args.model)
    seen = [each for each in load_entries(args.data) if each.split == "train"]
    entries = random.Random(1).sample(seen, args.names)
    print("| slots | temperature | confidence | local@1 | local@4 | global@1 | global@4 | distinct |")
    print("|---|---|---|---|---|---|---|---|")
    for confidence in ("base", "tempered"):
        for temperature in (0.2, 1.0):
            for row in rows_of(kit, entries, args.data, (temperature, confidence)):
                print(row, flush=True)


if __name__ == "__main__":
    main()
