"""Make docs/images/demo.png: drawn pictures above a page before and after its gaps were filled.

python scripts/demo_picture.py --chromium /usr/bin/chromium [--seed 1]
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

import cm3kit
from cm3kit.images import grid

ROOT = Path(__file__).parents[1]
PROMPTS = ("red apple", "dog face", "sunflower", "hot beverage", "rocket", "snowman")


def shot(chromium: str, page: Path, width: int = 560, height: int = 300) -> Image.Image:
    """A screenshot of a page in headless Chromium."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "shot.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        flags += [
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-quic",
        ]
        size = [
            f"--window-size={width},{height}",
            f"--user-data-dir={folder}/profile",
            f"--screenshot={target}",
        ]
        subprocess.run([chromium, *flags, *size, page.as_uri()], check=True, capture_output=True, timeout=120)
        return Image.open(target).convert("RGB")


def main() -> None:
    """Draw, fill, render and paste together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--model", default="pictures")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    kit = cm3kit.load(args.model)
    made = [(prompt, each) for prompt in PROMPTS for each in kit.generate(prompt, n=2, seed=args.seed)]
    pictures = [each.image.resize((96, 96)) for _, each in made if each.image is not None]
    sheet = grid(pictures, columns=len(pictures), captions=[prompt for prompt, _ in made])
    source = ROOT / "samples/apple.html"
    filled = kit.infill(cm3kit.Page.parse(source.read_bytes(), base=source.parent), seed=args.seed)[0]
    beside = source.with_name(".filled.html")
    beside.write_bytes(filled.html)
    try:
        before, after = shot(args.chromium, source), shot(args.chromium, beside)
    finally:
        beside.unlink()
    width = before.width + after.width + 20
    sheet = sheet.resize((width, sheet.height * width // sheet.width), Image.Resampling.LANCZOS)
    out = Image.new("RGB", (width, sheet.height + before.height), "white")
    out.paste(sheet, (0, 0))
    out.paste(before, (0, sheet.height))
    out.paste(after, (before.width + 20, sheet.height))
    out.save(ROOT / "docs/images/demo.png", optimize=True)


if __name__ == "__main__":
    main()
