"""Scenes composed of drawings with transparency: pairs, counts, colours and backgrounds, with captions."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HUES = {"red": 0.0, "orange": 0.08, "yellow": 0.155, "green": 0.35, "blue": 0.6, "purple": 0.78, "pink": 0.92}
GROUNDS = {
    "red": (244, 150, 140), "orange": (250, 196, 130), "yellow": (250, 240, 150), "green": (170, 220, 160),
    "blue": (160, 200, 245), "purple": (205, 175, 240), "pink": (250, 195, 220), "grey": (200, 200, 205),
    "black": (30, 30, 34), "brown": (190, 160, 130),
}  # fmt: skip
GROUNDED = 0.25  # share of other scenes with a coloured background
NUMBERS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True, slots=True)
class Sprite:
    """A drawing for scenes."""

    name: str
    artist: str
    file: str
    licence: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene in a file: its caption, and its objects as (name, left, top, right, bottom) in pixels."""

    file: str
    slug: str
    split: str
    licence: str
    caption: str
    parts: tuple[dict[str, Any], ...]


def is_held_out(first: str, second: str) -> bool:
    """Whether scenes of two names are held out of training."""
    low, high = sorted((first, second))
    return hashlib.sha256(f"{low}+{high}".encode()).digest()[0] < 16


def make(
    folder: Path, sprites: Sequence[Sprite], count: int, size: int,
    report: Callable[[int, int], None] = lambda done, total: None, workers: int = 1,
) -> list[Scene]:  # fmt: skip
    """Draw scenes into `folder`/pictures/scene in several processes; scene i depends only on i and the sprites."""
    made: list[Scene] = []
    with ProcessPoolExecutor(
        workers, initializer=_Stock.take_up, initargs=(folder, list(sprites), size)
    ) as pool:
        for number, scene in enumerate(pool.map(_draw, range(count if sprites else 0), chunksize=50), 1):
            made.append(scene)
            report(number, count)
    return made


class _Stock:
    """The sprites of a process."""

    folder: Path
    size: int
    names: list[str]
    by_name: dict[str, list[Sprite]]
    by_artist: dict[str, list[Sprite]]

    @classmethod
    def take_up(cls, folder: Path, sprites: list[Sprite], size: int) -> None:
        """Sort the sprites, once per process."""
        cls.folder, cls.size = folder, size
        cls.by_name, cls.by_artist = defaultdict(list), defaultdict(list)
        for each in sprites:
            cls.by_name[each.name].append(each)
            cls.by_artist[each.artist].append(each)
        cls.names = sorted(cls.by_name)


def _draw(index: int) -> Scene:
    rng, folder = random.Random(index), _Stock.folder
    first = rng.choice(_Stock.by_name[rng.choice(_Stock.names)])
    second = rng.choice(_Stock.by_artist[first.artist])
    kind = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
    picture, caption, placed = KINDS[kind][1](folder, first, second, _Stock.size, rng)
    if kind not in ("scaled", "grounded") and rng.random() < GROUNDED:
        colour = rng.choice(list(GROUNDS))
        caption += f" on {a(colour)} background"
        ground = Image.new("RGBA", picture.size, GROUNDS[colour])
    else:
        ground = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(ground, picture).convert("RGB")
    held = len(placed) > 1 and placed[0][0] != placed[1][0] and is_held_out(placed[0][0], placed[1][0])
    file = f"pictures/scene/{index // 1000:02}/{index:05}.webp"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    picture.save(folder / file, quality=92, method=4)
    parts = tuple({"name": name, "box": list(box), "artist": first.artist} for name, box in placed)
    licence = " and ".join(sorted({first.licence, second.licence} if len(placed) > 1 else {first.licence}))
    return Scene(file, f"scene/{index:05}", "scene" if held else "train", licence, caption, parts)


Placed = list[tuple[str, tuple[int, int, int, int]]]
Drawn = tuple[Image.Image, str, Placed]


@lru_cache(maxsize=20_000)
def _open(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGBA")


def _paste(
    canvas: Image.Image, sprite: Image.Image, left: int, top: int, side: int
) -> tuple[int, int, int, int]:
    small = sprite.resize((side, side), Image.Resampling.LANCZOS)
    canvas.alpha_composite(small, (max(0, left), max(0, top)))
    return left, top, left + side, top + side


def a(name: str) -> str:
    """A name with its indefinite article."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def several(name: str) -> str:
    """The plural of a name, by the rules of regular nouns."""
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    return f"{name[:-1]}ies" if name.endswith("y") and name[-2:-1] not in "aeiou" else f"{name}s"


def _beside(folder: Path, first: Sprite, second: Sprite, size: int, rng: random.Random) -> Drawn:
    canvas = Image.new("RGBA", (size, size))
    side = round(size * rng.uniform(0.45, 0.5))
    top, slack = (size - side) // 2, size // 10
    left_box = _paste(canvas, _open(folder / first.file), 0, top + rng.randint(-slack, slack), side)
    right_box = _paste(
        canvas, _open(folder / second.file), size - side, top + rng.randint(-slack, slack), side
    )
    x, y = a(first.name), a(second.name)
    caption = rng.choice(
        (
            f"{x} and {y}",
            f"{x} and {y}",
            f"{x} left of {y}",
            f"{y} right of {x}",
            f"{first.name}, {second.name}",
        )
    )
    return canvas, caption, [(first.name, left_box), (second.name, right_box)]


def _above(folder: Path, first: Sprite, second: Sprite, size: int, rng: random.Random) -> Drawn:
    canvas = Image.new("RGBA", (size, size))
    side = round(size * rng.uniform(0.45, 0.5))
    left, slack = (size - side) // 2, size // 10
    upper = _paste(canvas, _open(folder / first.file), left + rng.randint(-slack, slack), 0, side)
    lower = _paste(canvas, _open(folder / second.file), left + rng.randint(-slack, slack), size - side, side)
    x, y = a(first.name), a(second.name)
    return (
        canvas,
        rng.choice((f"{x} above {y}", f"{x} over {y}", f"{y} below {x}")),
        [(first.name, upper), (second.name, lower)],
    )


def _counted(folder: Path, first: Sprite, second: Sprite, size: int, rng: random.Random) -> Drawn:
    canvas, number, half = Image.new("RGBA", (size, size)), rng.choice((2, 2, 3, 4)), size // 2
    places = {2: [(0, half // 2), (half, half // 2)], 3: [(half // 2, 0), (0, half), (half, half)],
              4: [(0, 0), (half, 0), (0, half), (half, half)]}[number]  # fmt: skip
    sprite = _open(folder / first.file)
    boxes = [_paste(canvas, sprite, left, top, half) for left, top in places]
    return canvas, f"{NUMBERS[number]} {several(first.name)}", [(first.name, box) for box in boxes]


def _scaled(folder: Path, first: Sprite, second: Sprite, size: int, rng: random.Random) -> Drawn:
    canvas = Image.new("RGBA", (size, size))
    side = round(size * rng.uniform(0.4, 0.55))
    box = _paste(
        canvas, _open(folder / first.file), rng.randint(0, size - side), rng.randint(0, size - side), side
    )
    return canvas, f"a small {first.name}", [(first.name, box)]


def _grounded(folder: Path, first: Sprite, second: Sprite, size: int, rng: random.Random) -> Drawn:
    colour = rng.choice(list(GROUNDS))
    canvas = Image.new("RGBA", (size, size), GROUNDS[colour])
    side = round(size * rng.uniform(0.75, 0.95))
    box = _paste(canvas, _open(folder / first.file), (size - side) // 2, (size - side) // 2, side)
    return (
        canvas,
        rng.choice((f"{first.name} on {colour}", f"{a(first.name)} on {a(colour)} background")),
        [(first.name, box)],
    )


def _coloured(folder: Path, first: Sprite, second: Sprite, size: int, rng: random.Random) -> Drawn:
    words = set(first.name.split())
    colours = [colour for colour in HUES if not words & {*HUES, "black", "white", "brown", "grey"}]
    if not colours:
        return _grounded(folder, first, second, size, rng)
    colour, canvas = rng.choice(colours), Image.new("RGBA", (size, size))
    box = _paste(canvas, recoloured(_open(folder / first.file), colour), 0, 0, size)
    return canvas, f"{colour} {first.name}", [(first.name, box)]


def recoloured(sprite: Image.Image, colour: str) -> Image.Image:
    """Recolour a sprite: hues close to its most common one are rotated; greys and other hues stay."""
    hue, saturation, value = sprite.convert("RGB").convert("HSV").split()
    h, s, v = (np.asarray(each).astype(np.int64) for each in (hue, saturation, value))
    opaque = np.asarray(sprite.getchannel("A")) > 128
    counts = np.bincount(h.ravel(), weights=(s * v * (opaque & (s > 50))).ravel(), minlength=256)
    near = sum(np.roll(counts, shift) for shift in range(-10, 11))
    main, target = int(np.argmax(near)), round(HUES[colour] * 255)
    apart = np.minimum((h - main) % 256, (main - h) % 256)
    turned = np.where(apart <= 22, (h + target - main) % 256, h).astype(np.uint8)
    out = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
    return Image.merge("RGBA", (*out.split(), sprite.getchannel("A")))


KINDS: dict[str, tuple[float, Callable[[Path, Sprite, Sprite, int, random.Random], Drawn]]] = {
    "beside": (0.34, _beside), "above": (0.14, _above), "counted": (0.14, _counted),
    "scaled": (0.08, _scaled), "grounded": (0.15, _grounded), "coloured": (0.15, _coloured),
}  # fmt: skip
