"""Make docs/images/{seen,styles,prompts}.png: what the model draws, the good and the bad, by names at a fixed seed.

python scripts/contact_sheets.py --data data/pictures-most-told [--model pictures]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

import cm3kit
from cm3kit.fill.kit import Kit
from cm3kit.json_lines import objects

ROOT = Path(__file__).parents[1]
ARTISTS = ("Noto", "Blob", "Twemoji", "Fluent Flat", "Fluent 3D", "FxEmoji", "EmojiOne", "Streamline")
STYLED = ("cat face", "rocket", "red apple", "snowman", "guitar", "birthday cake", "elephant", "tulip")
PROMPTS = (
    "a red apple", "my cat", "car", "two cats", "a blue automobile", "birthday party", "sailing boat on the sea",
    "apple and pear", "a castle at night", "green heart",
)  # fmt: skip
CELL, LABEL = 68, 130


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], heads: Sequence[str] = ()) -> Image.Image:
    """A row of pictures behind each label, below the heads of the columns."""
    top = 18 if heads else 0
    width = LABEL + CELL * max(len(pictures) for _, pictures in rows)
    page = Image.new("RGB", (width, top + CELL * len(rows)), "white")
    draw = ImageDraw.Draw(page)
    for column, head in enumerate(heads):
        draw.text((LABEL + CELL * column + 2, 3), head, fill="black")
    for row, (label, pictures) in enumerate(rows):
        draw.text((2, top + CELL * row + 28), label[:21], fill="black")
        for column, each in enumerate(pictures):
            page.paste(each.convert("RGB").resize((64, 64)), (LABEL + CELL * column, top + CELL * row + 2))
    return page


def drawn(kit: Kit, prompt: str, n: int, seed: int = 1) -> list[Image.Image]:
    """Pictures at the model's own settings."""
    return [each.image for each in kit.generate(prompt, n=n, seed=seed) if each.image is not None]


def main() -> None:
    """Draw all sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="A corpus of pictures, for its names.")
    parser.add_argument("--model", default="pictures")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs/images")
    args = parser.parse_args()
    kit = cm3kit.load(args.model)
    things = [*objects((args.data / "things.jsonl").read_bytes())]
    names = sorted(
        each["name"] for each in things if each["split"] == "train" and each["group"] != "clip art"
    )
    some = random.Random(1).sample(names, 28)
    halves = [[(name, drawn(kit, name, 4)) for name in half] for half in (some[:14], some[14:])]
    left, right = map(sheet, halves)
    both = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    both.save(args.output / "seen.png", optimize=True)
    styled = [(name, [drawn(kit, f"{name}, {hand}", 1)[0] for hand in ARTISTS]) for name in STYLED]
    sheet(styled, ARTISTS).save(args.output / "styles.png", optimize=True)
    sheet([(prompt, drawn(kit, prompt, 8)) for prompt in PROMPTS]).save(
        args.output / "prompts.png", optimize=True
    )


if __name__ == "__main__":
    main()
