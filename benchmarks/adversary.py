"""A discriminator that learns before it is heard, against one that is heard at once: loss curves as a picture.

python benchmarks/adversary.py --data data/emoji [--steps 400] [--svg docs/images/discriminator-start.svg]

Both runs train the same small network on the same pictures; what differs is when the discriminator starts to learn,
how fast its weight grows, and whether that weight has a bound. Prints one JSON object; `--svg` draws the curves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from cm3kit.config import resolve
from cm3kit.training.loop import train
from cm3kit.training.vqgan import VqganRecipe, VqganTask

NETWORK: dict[str, Any] = {
    "resolution": 32, "channels": [16, 32, 64], "latent_channels": 32, "norm_groups": 8, "attention": False,
    "codes": 512, "code_dim": 16,
}  # fmt: skip
HEARD = 0.5  # from which share of the steps both are heard
RUNS: dict[str, dict[str, Any]] = {
    "without warm-up": {
        "weight": 0.8, "train_from": HEARD, "start": HEARD, "ramp": 0.0, "adaptive": True, "most": 1e4, "lecam": 0.0,
    },
    "with warm-up": {"weight": 0.1, "train_from": 0.0, "start": HEARD, "ramp": 0.2},
}  # fmt: skip
CURVES = {
    "psnr": "PSNR of the batch, dB",
    "d_real": "logit of real patches",
    "g_weight": "weight of its opinion",
}
COLOURS = ("#c0392b", "#2471a3")


def run(name: str, data: Path, steps: int) -> list[dict[str, float]]:
    """The log of one run."""
    recipe = resolve(
        VqganRecipe,
        [
            {
                "data": str(data), "tokenizer": NETWORK, "codebook": {"start": 30}, "shift": 0,
                "adversary": {"channels": 16, "layers": 2} | RUNS[name],
                "loop": {
                    "steps": steps, "batch_size": 8, "learning_rate": 2e-3, "warmup": 0.05, "ema": 0.99,
                    "save_every": steps, "preview_every": 10**9, "log_every": max(1, steps // 80),
                },
            }
        ],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        train(VqganTask(recipe), recipe.loop, Path(folder) / "run", device="cpu")
        return [json.loads(line) for line in (Path(folder) / "run/log.jsonl").read_text().splitlines()]


def drawing(logs: dict[str, list[dict[str, float]]], steps: int) -> str:
    """An SVG with one panel a curve, and one line a run."""
    width, height, left, top, gap = 720, 130, 56, 34, 46
    total = top + len(CURVES) * (height + gap)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{width}" height="{total}" fill="white"/>',
    ]
    for index, (name, colour) in enumerate(zip(logs, COLOURS, strict=True)):
        parts.append(f'<text x="{left + 170 * index}" y="16" fill="{colour}">— {name}</text>')
    for index, (key, title) in enumerate(CURVES.items()):
        base = top + index * (height + gap) + 16
        curves = [[(line["step"], line[key]) for line in log if key in line] for log in logs.values()]
        values = [value for curve in curves for _, value in curve]
        low, high = min(values), max(values)
        parts += _frame(title, low, high, left, base, width - left - 12, height - 16, steps)
        for curve, colour in zip(curves, COLOURS, strict=True):
            scale = (height - 16) / ((high - low) or 1)
            points = [
                (left + step / steps * (width - left - 12), base + (high - value) * scale)
                for step, value in curve
            ]
            parts.append(f'<path d="{_path(points)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return "\n".join([*parts, "</svg>\n"])


def _frame(
    title: str, low: float, high: float, x: int, y: int, width: int, height: int, steps: int
) -> list[str]:
    heard = x + HEARD * width
    return [
        f'<text x="{x}" y="{y - 5}">{title}</text>',
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="none" stroke="#bbb"/>',
        f'<line x1="{heard:.0f}" y1="{y}" x2="{heard:.0f}" y2="{y + height}" stroke="#888" stroke-dasharray="4 3"/>',
        f'<text x="{heard + 4:.0f}" y="{y + height + 13}" fill="#666">heard from here on</text>',
        f'<text x="{x - 6}" y="{y + 10}" text-anchor="end" fill="#666">{high:.3g}</text>',
        f'<text x="{x - 6}" y="{y + height}" text-anchor="end" fill="#666">{low:.3g}</text>',
        f'<text x="{x + width}" y="{y + height + 13}" text-anchor="end" fill="#666">step {steps}</text>',
    ]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{'L' if index else 'M'}{x:.1f},{y:.1f}" for index, (x, y) in enumerate(points))


def summary(log: Sequence[dict[str, float]], steps: int) -> dict[str, float]:
    """What happened when the discriminator was heard."""
    psnr = [line["psnr"] for line in log]
    before = [line["psnr"] for line in log if line["step"] <= HEARD * steps][-10:]
    after = [line["psnr"] for line in log if line["step"] > HEARD * steps]
    return {
        "psnr_before": round(sum(before) / len(before), 2),
        "lowest_after": round(min(after), 2),
        "psnr_at_end": round(sum(psnr[-10:]) / 10, 2),
        "steepest_fall": round(max(one - other for one, other in pairwise(psnr)), 2),
        "largest_weight": round(max(line.get("g_weight", 0.0) for line in log), 3),
    }


def main() -> None:
    """Train both, draw and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logs = {name: run(name, args.data, args.steps) for name in RUNS}
    if args.svg:
        args.svg.write_text(drawing(logs, args.steps))
    print(json.dumps({name: summary(log, args.steps) for name, log in logs.items()}, indent=2))


if __name__ == "__main__":
    main()
