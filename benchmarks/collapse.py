"""What keeps a codebook in use: the same small network and budget, with taming-transformers' defaults and with ours.

python benchmarks/collapse.py --data data/emoji [--photos FOLDER] [--steps 300] [--only NAME,NAME]

`--photos` names a folder of large photographs, which are cut into squares. Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cm3kit.config import resolve
from cm3kit.evaluation.reconstruction import figures, scores
from cm3kit.training.loop import train
from cm3kit.training.vqgan import VqganRecipe, VqganTask
from cm3kit_tokenizers.vq.model import ImageTokenizer

CODES = 512
NETWORK: dict[str, Any] = {
    "resolution": 32, "channels": [16, 32, 64], "latent_channels": 32, "norm_groups": 8, "attention": False,
    "codes": CODES, "code_dim": 32,
}  # fmt: skip
PLAIN = {"gradient": True, "rotation": False, "restart_below": 0.0}
# Name: tokenizer, codebook, loss, and whether codes start as they were drawn, uniform in ±1/K, instead of from data.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], bool]] = {
    "taming-transformers' defaults": ({}, PLAIN, {"swapped": True}, True),
    "the same, β on the encoder's side": ({}, PLAIN, {}, True),
    "by gradient, start and restart from data": ({}, {"gradient": True, "rotation": False}, {}, False),
    "ours: `vq` (moving average, start, restart, rotation)": ({}, {}, {}, False),
    "ours: `vq_l2`, 8 dimensions": ({"quantizer": "vq_l2", "code_dim": 8}, {}, {}, False),
    "ours: `simvq`": ({"quantizer": "simvq"}, {}, {}, False),
    "ours: `residual`, 16 × 32": ({"quantizer": "residual", "levels": [16, 32]}, {}, {}, False),
    "ours: `fsq`, 8 × 8 × 8": ({"quantizer": "fsq", "code_dim": 3, "levels": [8, 8, 8]}, {}, {}, False),
}


def crops(folder: Path, target: Path, across: int = 12) -> Path:
    """Cut every picture of a folder into squares, `across` of them side by side, and save them small."""
    target.mkdir()
    for path in sorted(each for each in folder.iterdir() if each.suffix.lower() in (".jpg", ".jpeg", ".png")):
        with Image.open(path) as picture:
            picture.draft("RGB", (1600, 1600))
            whole = picture.convert("RGB")
        side = whole.width // across
        for top in range(0, whole.height - side + 1, side):
            for left in range(0, whole.width - side + 1, side):
                piece = whole.crop((left, top, left + side, top + side))
                piece = piece.resize((NETWORK["resolution"],) * 2, Image.Resampling.LANCZOS)
                piece.save(target / f"{path.stem}-{top}-{left}.png")
    return target


def measure(name: str, data: Path, steps: int) -> dict[str, float]:
    """Train one variant, and measure it on held-out pictures."""
    tokenizer, codebook, loss, drawn = VARIANTS[name]
    recipe = resolve(
        VqganRecipe,
        [
            {
                "data": str(data), "tokenizer": NETWORK | tokenizer, "codebook": {"start": 30} | codebook,
                "loss": loss, "shift": 0,
                "loop": {
                    "steps": steps, "batch_size": 8, "learning_rate": 2e-3, "warmup": 0.05, "ema": 0.99,
                    "save_every": steps, "preview_every": 10**9, "log_every": 100,
                },
            }
        ],
    )  # fmt: skip
    task = VqganTask(recipe)
    if drawn:
        task.model.codebook.started.fill_(True)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trained = ImageTokenizer.load(train(task, recipe.loop, Path(folder) / "run", device="cpu"))
    seconds = time.process_time() - start
    held_BCHW = task.pictures.held_out(None)
    codes_BN = trained.encode(held_BCHW)
    counts_K = torch.bincount(codes_BN.flatten(), minlength=trained.size).float()
    return figures(scores(held_BCHW, trained.decode(codes_BN)), counts_K) | {"seconds": seconds}


def main() -> None:
    """Measure every variant on every set of pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", help="names of variants, or what they begin with, separated by commas")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = tuple(args.only.split(",")) if args.only else ("",)
    names = [name for name in VARIANTS if name.startswith(wanted)]
    print("| pictures | codes | used | perplexity | PSNR | SSIM | CPU-s |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        sets = {"dictionary": args.data}
        if args.photos:
            sets["photographs"] = crops(args.photos, Path(folder) / "crops")
        for kind, data in sets.items():
            for name in names:
                found = measure(name, data, args.steps)
                print(
                    f"| {kind} | {name} | {found['used']:.1%} | {found['perplexity']:.0f} | {found['psnr']:.2f} dB"
                    f" | {found['ssim']:.3f} | {found['seconds']:.0f} |",
                    flush=True,
                )
    print(f"{args.steps} steps of 8 pictures, {CODES} codes", file=sys.stderr)


if __name__ == "__main__":
    main()
