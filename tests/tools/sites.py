"""A small site, and settings under which a model of it is trained in seconds."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "orange", "purple", "black", "gold", "pink")
SHAPES = ("square", "circle", "bar")
TINY = (
    "image.tokenizer.resolution=16", "image.tokenizer.channels=[8, 8, 8]", "image.tokenizer.norm_groups=8",
    "image.tokenizer.attention=false", "image.tokenizer.codes=32", "image.loop.steps=12", "image.codebook.start=3",
    "image.loop.batch_size=4", "image.shift=1", "text.size=300", "decoder.window=96", "decoder.loop.steps=12",
    "decoder.loop.batch_size=2", "decoder.backbone.hidden_size=16", "decoder.backbone.layers=1",
    "decoder.backbone.intermediate_size=16", "decoder.loop.preview_every=0", "decoder.loop.validate_every=0",
    "pack.held_out=0.2",
)  # fmt: skip


def make_pages(folder: Path, count: int = 24, pictures: bool = True, side: int = 40) -> Path:
    """Pages that each have a heading, a few words, and a picture of a shape in a colour."""
    for number in range(count):
        colour, shape = COLOURS[number % 8], SHAPES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        tag = ""
        if pictures:
            tile = Image.new("RGB", (side, side), "white")
            draw = ImageDraw.Draw(tile)
            box = (4, 4, side - 4 - number % 5, side - 4)
            (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
            tile.save(folder / f"{number}.png")
            tag = f'<p><img alt="a {colour} {shape}" src="{number}.png"></p>'
        words = f"<h1>Number {number}</h1><p>This page shows a {colour} {shape} on paper.</p>"
        (folder / f"{number:02}.html").write_text(
            f'<html lang="en"><title>{colour} {shape}</title>{words}{tag}</html>'
        )
    return folder
