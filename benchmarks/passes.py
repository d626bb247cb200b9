"""Quality against forward passes: one model, two decoders, and ways to spend fewer passes.

python benchmarks/passes.py --model checkpoints/pictures --data data/emoji [--names 60] [--svg docs/images/passes.svg]

A picture from its name counts as right if the named picture is among the five nearest of all; a caption is compared
by edit similarity. Passes are forward passes of the network for one sample, a guided one counting twice.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import cm3kit
from cm3kit.data.dictionary import Entry
from cm3kit.data.pictures import PictureSet, load_pictures
from cm3kit.evaluation.retrieval import Index, top
from cm3kit.evaluation.words import compare
from cm3kit.fill.kit import GenerateOptions, Kit, Result

CODES, SLOTS = 64, 16
BLOCK = 8  # a row of a picture
Way = tuple[dict[str, Any], dict[str, Any]]
DRAWN: dict[str, Any] = {
    "temperature": 0.3,
    "top_p": 0.9,
}  # by every way, as the causal decoder of emoji does


def ways(kit: Kit) -> dict[str, Way]:
    """Options for pictures and for captions, by name; steps of a model that was trained in blocks are a block's."""
    out: dict[str, Way] = {"left to right (cm3)": ({"decoder": "cm3"},) * 2}
    if kit.parts.defaults.diffusion.trained_block is None:
        return {**out, **_anywhere()}
    how: dict[str, Any] = {"decoder": "diffusion", "sampler": "uniform"}
    for steps in (8, 4, 2, 1):
        label = "L" if steps == 8 else f"L/{8 // steps}"
        out[f"uniform, {label}"] = ({**how, "steps": steps},) * 2
    for steps in (8, 4):
        ordered = {**how, "order": "left-to-right", "steps": steps}
        out["in order, L" if steps == 8 else "in order, L/2"] = (ordered,) * 2
    for size in (1, 2, 4):
        out[f"blocks of {size}, one pass each"] = ({**how, "block_size": size, "steps": 1},) * 2
    for order in ("probability", "joint"):
        for tau in (0.9, 0.7, 0.5, 0.3):
            sure = {**how, "order": order, "accept": {"name": "threshold", "tau": tau}}
            out[f"{'threshold' if order == 'probability' else 'joint'} {tau}"] = (sure,) * 2
    for preset in ("ascending", "ascending-eoser"):
        out[preset] = ({"decoder": "diffusion", "sampler": preset},) * 2
    for steps in (2, 4):
        out[f"cosine, {steps} a block"] = ({"decoder": "diffusion", "sampler": "cosine", "steps": steps},) * 2
    return out


def _anywhere() -> dict[str, Way]:
    """Ways of a model that may write anywhere at any time."""
    out: dict[str, Way] = {}
    for part in (1, 2, 4, 8):
        label = "uniform, L" if part == 1 else f"uniform, L/{part}"
        out[label] = (
            {"decoder": "diffusion", "sampler": "uniform", "steps": CODES // part},
            {"decoder": "diffusion", "sampler": "uniform", "steps": SLOTS // part},
        )
    for part in (1, 2):
        label = "in order, L" if part == 1 else f"in order, L/{part}"
        how: dict[str, Any] = {"decoder": "diffusion", "sampler": "uniform", "order": "left-to-right"}
        out[label] = ({**how, "steps": CODES // part}, {**how, "steps": SLOTS // part})
    blocks: dict[str, Any] = {"decoder": "diffusion", "sampler": "uniform", "block_size": BLOCK}
    for steps in (8, 4, 2, 1):
        label = "one pass" if steps == 1 else f"{steps} passes"
        out[f"blocks of {BLOCK}, {label} each"] = ({**blocks, "steps": steps},) * 2
    for preset in ("ascending", "ascending-eoser", "threshold"):
        out[preset] = ({"decoder": "diffusion", "sampler": preset},) * 2
    for steps in (8, 16):
        out[f"cosine, {steps}"] = ({"decoder": "diffusion", "sampler": "cosine", "steps": steps},) * 2
    for pair in out.values():
        for each in pair:
            if each["decoder"] == "diffusion" and "block_size" not in each:
                each["overrides"] = ("block_size=null",)  # that of the model's defaults
    return out


def passes(results: Sequence[Result]) -> float:
    """Mean forward passes of a sample; the causal decoder takes one for every id, and one for the prompt."""
    counts = [each.trace.cost.forwards if each.trace else None for each in results]
    known = [each for each in counts if each is not None]
    return sum(known) / len(known) if known else float("nan")


def draw(
    kit: Kit, pictures: PictureSet, index: Index, entries: Sequence[Entry], how: dict[str, Any]
) -> dict[str, Any]:
    """Pictures from names."""
    made, start = [], time.process_time()
    for entry in entries:
        made += kit.generate(entry.name, seed=7, options=GenerateOptions(batch_size=1, **DRAWN, **how))
    seconds = time.process_time() - start
    ranks = index.ranks(
        kit.image.pixels([each.image for each in made if each.image]), [each.name for each in entries]
    )
    count = CODES if how["decoder"] == "cm3" else passes(made)
    return {
        "top1": round(top(ranks, 1), 3), "top5": round(top(ranks, 5), 3), "passes": round(count, 1),
        "cpu_seconds": round(seconds / len(made), 3),
    }  # fmt: skip


def caption(
    kit: Kit, args: argparse.Namespace, entries: Sequence[Entry], how: dict[str, Any]
) -> dict[str, Any]:
    """Words from pictures."""
    made, start = [], time.process_time()
    for entry in entries:
        picture = args.data / "pictures" / f"{entry.slug}.png"
        made += kit.generate(
            picture, task="caption", seed=7, options=GenerateOptions(batch_size=1, **DRAWN, **how)
        )
    seconds = time.process_time() - start
    match = compare(
        [each.text or "" for each in made], [e.name for e in entries], [each.ended for each in made]
    )
    texts = [len(kit.text.encode(each.text or "")) + 1 for each in made]
    count = sum(texts) / len(texts) if how["decoder"] == "cm3" else passes(made)
    return {
        "exact": round(match.exact, 3), "similarity": round(match.similarity, 3), "ended": round(match.ended, 3),
        "passes": round(count, 1), "cpu_seconds": round(seconds / len(made), 3),
    }  # fmt: skip


FAMILIES = {
    "left to right": "#c0392b", "in order": "#111", "joint": "#1f6feb", "threshold": "#2e8b57", "uniform": "#8e44ad",
    "blocks of": "#e08e0b", "ascending": "#777", "cosine": "#d6629a",
}  # fmt: skip


def plot(rows: dict[str, Any]) -> str:
    """The picture figures as a small SVG: share in the top five over passes, on a logarithmic axis; a family a line."""
    width, height, left, bottom = 640, 360, 56, 44

    def across(passes: float) -> float:
        return left + (width - left - 20) * math.log2(passes) / 6.2

    def up(share: float) -> float:
        return height - bottom - (height - bottom - 20) * share

    marks = [
        f'<text x="{across(count):.1f}" y="{height - bottom + 18}" text-anchor="middle">{count}</text>'
        for count in (1, 2, 4, 8, 16, 32, 64)
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        marks.append(f'<text x="{left - 8}" y="{up(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
        marks.append(f'<path d="M{left} {up(share):.1f}H{width - 20}" stroke="#ddd"/>')
    found = [family for family in FAMILIES if any(name.startswith(family) for name in rows)]
    for number, family in enumerate(found):
        colour, line = FAMILIES[family], 40 + 18 * number
        drawn = [row["draw"] for name, row in rows.items() if name.startswith(family)]
        spots = sorted((across(float(each["passes"])), up(each["top5"])) for each in drawn)
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        marks.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-opacity=".5"/>')
        size = 7 if number == 0 else 4  # the causal decoder is seen behind what is as good
        marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>' for x, y in spots]
        marks.append(f'<circle cx="{left + 20}" cy="{line - 4}" r="4" fill="{colour}"/>')
        marks.append(f'<text x="{left + 30}" y="{line}">{family}{" (cm3)" if number == 0 else ""}</text>')
    axis = f'<text x="{(left + width) / 2:.0f}" y="{height - 6}" text-anchor="middle">forward passes a picture</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        f' font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(marks)}{axis}</svg>\n'
    )


def main() -> None:
    """Measure every way and print a table (standard error) and JSON (standard output)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pictures")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--names", type=int, default=60)
    parser.add_argument("--only", default="", help="names of ways that hold this text")
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kit = cm3kit.load(args.model)
    pictures = load_pictures(args.data, kit.image)
    index = Index.build(pictures.names, pictures.pixels_BCHW)
    seen = [each for each in pictures.entries if each.split == "train"]
    held = [each for each in pictures.entries if each.split == "tone"]
    chosen = {
        split: random.Random(0).sample(pool, min(args.names, len(pool)))
        for split, pool in (("seen", seen), ("tone", held))
    }
    rows: dict[str, Any] = {}
    for name, (image, text) in ways(kit).items():
        if args.only not in name:
            continue
        rows[name] = {
            "draw": draw(kit, pictures, index, chosen["seen"], image),
            "draw_tone": draw(kit, pictures, index, chosen["tone"], image),
            "caption": caption(kit, args, chosen["seen"], text),
            "caption_tone": caption(kit, args, chosen["tone"], text),
        }
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    print(
        "| way | passes | top-1 | top-5 | tones top-5 | CPU s | caption passes | exact | similarity | tones | CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        d, c = row["draw"], row["caption"]
        print(
            f"| {name} | {d['passes']} | {d['top1']:.0%} | {d['top5']:.0%} | {row['draw_tone']['top5']:.0%} |"
            f" {d['cpu_seconds']} | {c['passes']} | {c['exact']:.0%} | {c['similarity']:.2f} |"
            f" {row['caption_tone']['similarity']:.2f} | {c['cpu_seconds']} |"
        )
    print(json.dumps(rows, indent=1))
    if args.svg:
        args.svg.write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
