"""Train the decoder of checkpoints/pictures for some minutes on a machine that has a packed folder and nothing else.

    python checkpoints/pictures/gpu/train.py packed -o trained --seconds 400

Draws the corpus (all processors), encodes every picture in ten views on the GPU, and trains by the recipe
`pictures-block`. The rate follows the clock, since nobody knows beforehand how many steps fit. The model is compiled
ahead in a process of its own, beside the drawing.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing import Pool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pack import PICTURE, load_builder
from PIL import Image
from torch import Tensor

from cm3kit.config import read_yaml, resolve
from cm3kit.data.bundle import Flat, save_bundle
from cm3kit.data.corpus import Documents
from cm3kit.data.encodings import Encodings, encode_pixels
from cm3kit.data.views import ViewSettings
from cm3kit.rng import generator
from cm3kit.training import step as steps
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.precision import accelerator
from cm3kit.training.progress import Progress
from cm3kit.training.run import recipe_path
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 1024
START = time.time()


def say(*words: object) -> None:
    """A line on stderr with the seconds so far."""
    print(f"[{time.time() - START:6.1f}]", *words, file=sys.stderr, flush=True)


def draw(packed: Path, folder: Path, workers: int, every: int) -> list[dict[str, Any]]:
    """Draw the corpus' pictures, or one in `every` to try it out; returns a row per picture."""
    build = load_builder()
    with lzma.open(packed / "drawings.pickle.xz") as file:
        jobs, things = pickle.load(file)
    if every > 1:
        build.SCENES //= every
    (folder / "source").mkdir(parents=True)
    made = []
    for number, (fields, source) in enumerate(jobs[::every]):
        if isinstance(source, bytes):
            path = folder / "source" / f"{number}.webp"
            path.write_bytes(source)
            source = path
        made.append((build.Drawing(*fields), source))
    known = [SimpleNamespace(slug=slug, name=name, group=group) for slug, name, group in things]
    rows, dropped = build.draw(folder, made, known, lambda done, total: None, workers)
    say("drawn", len(rows), dict(dropped))
    return [asdict(row) for row in rows]


def look(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A picture over white, and its opacity."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return np.array(white).transpose(2, 0, 1), np.array(picture.getchannel("A"))[None]


def encode(paths: list[Path], image: ImageTokenizer, views: ViewSettings, workers: int) -> Encodings:
    """Codes of every picture in its views, as `cm3kit.data.encodings` makes them, with files read by all processors."""
    with Pool(workers) as pool:
        found = pool.map(look, paths, chunksize=64)
    white, opacity = (torch.from_numpy(np.stack(each)) for each in zip(*found, strict=True))
    codes: list[Tensor] = []
    for start in range(0, len(paths), BATCH):
        part = slice(start, start + BATCH)
        codes += encode_pixels(white[part], opacity[part], image, views, start)
    return Encodings.of(codes)


class Packed:
    """The documents of a packed folder, and its tokenizers."""

    def __init__(self, folder: Path) -> None:
        self.image = ImageTokenizer.load(folder / "image")
        text = TextTokenizer.load(folder / "text")
        self.tokenizer = PageTokenizer(text, Vocab(text.size, self.image.size))
        with np.load(folder / "documents.npz") as file:
            self.ids, self.pictures, self.sizes, self.weights = (
                torch.from_numpy(file[name]) for name in ("ids", "pictures", "sizes", "weights")
            )
            self.names: list[str] = file["names"].tolist()
        self.sizes, self.ids = self.sizes.long(), self.ids.to(torch.int32)
        self.is_picture = self.ids == PICTURE

    def save(self, codes: Encodings, views: ViewSettings, folder: Path, most: int | None = None) -> None:
        """A bundle of all documents, or of the first so many, with these codes."""
        ids = self.ids.clone()
        ids[self.is_picture] = -1 - self.pictures
        found = replace(codes, codes_NL=codes.codes_NL + self.tokenizer.vocab.image.start)
        flat, weights = Flat(ids, self.sizes.cumsum(0)), self.weights[:most]
        documents = Documents(flat if most is None else flat[:most], weights, (), found, views, "pictures")
        save_bundle(documents, [], self.tokenizer, self.image.to("cpu"), folder)

    def keep(self, drawn: set[str]) -> int:
        """Number the pictures that were drawn alone, and never show documents with another; how many those are."""
        there = torch.tensor([name in drawn for name in self.names])
        owner = torch.repeat_interleave(torch.arange(len(self.sizes)), self.sizes)[self.is_picture]
        self.weights[owner[~there[self.pictures.long()]]] = 0.0
        self.pictures = (there.long().cumsum(0) - 1).clamp_min(0)[self.pictures.long()].to(torch.int32)
        self.names = [name for name in self.names if name in drawn]
        return int((self.weights == 0).sum())


def bundle(packed: Path, folder: Path, rows: list[dict[str, Any]], views: ViewSettings, workers: int) -> None:
    """Documents with the encodings of what was drawn."""
    found = Packed(packed)
    out = found.keep({row["file"] for row in rows})
    codes = encode([folder / name for name in found.names], found.image.to(DEVICE), views, workers)
    say("encoded", tuple(codes.codes_NL.shape), "documents left out", out)
    found.save(codes, views, folder / "bundle")


def warm(packed: Path, folder: Path, overrides: list[str]) -> None:
    """Compile the model on some documents with codes that mean nothing; the compiler keeps what it has made."""
    found = Packed(packed)
    rows, columns = found.image.grid
    codes = torch.randint(found.image.size, (len(found.names), 1, rows * columns), generator=generator(0))
    found.save(Encodings.of(list(codes)), ViewSettings(), folder / "bundle", 5000)
    decoder(packed, folder / "bundle", folder / "out", 1, [*overrides, "loop.workers=2"])


def train_by_the_clock(task: DecoderTask, seconds: float, report: Callable[..., None]) -> Progress:
    """As many steps as fit; the first two, in which the model is compiled, are at the lowest rate."""
    loop = task.recipe.loop
    progress = Progress(task, loop, accelerator(loop.precision, "auto"))
    model = torch.compile(progress.wrapped) if loop.compile else progress.wrapped
    plain, begun, end = steps.schedule, 0.0, time.time() + seconds
    clock = lambda done, settings: plain(  # noqa: E731
        min(0.9999, (time.time() - begun) / (end - begun)) if begun else 0.0, settings
    )
    steps.schedule = clock
    try:
        while time.time() < end and progress.step < loop.steps:
            done = steps.one_step(progress, model, [], report)
            begun = begun or (time.time() if progress.step == 2 else 0.0)
            if progress.step % 200 == 0 or progress.step <= 2:
                report(progress.step, {name: round(float(value), 3) for name, value in done.figures.items()})
    finally:
        steps.schedule = plain
    report("steps", progress.step)
    return progress


def decoder(packed: Path, data: Path, output: Path, seconds: float, overrides: list[str]) -> None:
    """Train on a bundle, and export the averaged weights."""
    begin = [f"backbone_from={packed / 'decoder'}"] if (packed / "decoder").is_dir() else []
    own = [
        f"data={data}",
        f"text={packed / 'text'}",
        f"image={packed / 'image'}",
        "loop.steps=1000000",
        *begin,
    ]
    recipe = resolve(DecoderRecipe, [read_yaml(recipe_path(Path("pictures-block")))], [*own, *overrides])
    task = DecoderTask(recipe, output.with_name(output.name + "-cache"))
    say("task", len(task.documents.ids), "documents of", round(task.documents.mean_length, 1), "ids")
    progress = train_by_the_clock(task, seconds, say)
    with progress.averaged() as model:
        assert model is not None
        output.mkdir(parents=True)
        task.export(model, output)


def main() -> None:
    """Draw, encode, train, export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packed", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=400, help="Until the export, from the start of this program."
    )
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/pictures"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--every", type=int, default=1, help="Draw one picture in so many, to try this out.")
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--warm", action="store_true", help="Only compile; this program starts itself so.")
    args = parser.parse_args()
    if args.warm:
        return warm(args.packed, args.scratch / "warm", args.overrides)
    if DEVICE == "cuda":
        more = [f"--set={each}" for each in args.overrides]
        begin = [
            sys.executable,
            __file__,
            str(args.packed),
            "-o",
            "unused",
            "--scratch",
            str(args.scratch),
            "--warm",
        ]
        subprocess.Popen([*begin, *more], env={**os.environ, "OMP_NUM_THREADS": "1"})
    rows = draw(args.packed, args.scratch, args.workers, args.every)
    (args.scratch / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bundle(args.packed, args.scratch, rows, ViewSettings(count=args.views, plain=0.7), args.workers)
    left = args.seconds - (time.time() - START)
    decoder(args.packed, args.scratch / "bundle", args.output, left, args.overrides)
    return None


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # worker processes that draw ahead need not be waited for
