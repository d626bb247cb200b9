"""Pack what `train.py` beside this file needs into one small folder: drawings as SVG or WebP, documents, tokenizers.

    python checkpoints/pictures/gpu/pack.py --packages data/packages --data data/pictures \\
        --text runs/text/final --image runs/vqgan/final -o packed

The corpus has to be built (`make pictures`). Some 30 MB; the pictures are drawn anew on the other machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import lzma
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cm3kit.data.corpus import listing, parse_pages
from cm3kit.data.iconify import render, squared
from cm3kit_tokenizers.errors import DataError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer

PICTURE = 0xFFFF  # stands for a picture where ids do


def load_builder() -> Any:
    """The module of the corpus' builder."""
    path = Path(__file__).resolve().parents[1] / "build.py"
    spec = importlib.util.spec_from_file_location("pictures_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pictures_build"] = module
    spec.loader.exec_module(module)
    return module


def small(source: Path | str, size: int) -> str | bytes:
    """An SVG as it is; a file as WebP of the size that it is trained in."""
    if isinstance(source, str):
        return source
    if source.suffix == ".webp":
        with Image.open(source) as opened:
            picture = squared(opened, size)
    else:
        picture = render(source.read_text(encoding="utf-8", errors="replace"), size)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=84, method=4)
    return buffer.getvalue()


def drawings(packages: Path, path: Path) -> None:
    """Every drawing that is trained on, with its source."""
    build = load_builder()
    things, jobs, lost = build.read_things(packages), [], 0
    for drawing, source in build._jobs(packages, things):
        if drawing.split != "train":
            continue
        try:
            fields = tuple(
                getattr(drawing, name) for name in ("file", "slug", "artist", "split", "weight", "licence")
            )
            jobs.append((fields, small(source, build.SIZE)))
        except DataError:
            lost += 1
    print(f"{len(jobs)} drawings, {lost} that cannot be drawn", file=sys.stderr)
    with lzma.open(path, "wb") as file:
        pickle.dump((jobs, [(thing.slug, thing.name, thing.group) for thing in things]), file)


def documents(data: Path, text: Path, codes: int, cache: Path, path: Path) -> None:
    """All pages that are trained on, as ids with one number per picture."""
    words = TextTokenizer.load(text)
    tokenizer = PageTokenizer(words, Vocab(words.size, codes))
    pages = [page for page in listing(data) if page.split == "train"]
    rows, names = parse_pages(pages, data, tokenizer, cache)
    flat = np.array([part for row in rows for part in row])
    np.savez_compressed(
        path, ids=np.where(flat < 0, PICTURE, flat).astype(np.uint16), pictures=(-1 - flat[flat < 0]).astype(np.int32),
        sizes=np.array([len(row) for row in rows], np.int16),
        weights=np.array([page.weight for page in pages], np.float32), names=np.array(names),
    )  # fmt: skip
    print(f"{len(rows)} documents with {len(names)} pictures", file=sys.stderr)


def main() -> None:
    """Pack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, default=Path("data/packages"))
    parser.add_argument("--data", type=Path, default=Path("data/pictures"))
    parser.add_argument("--text", type=Path, default=Path("runs/text/final"))
    parser.add_argument("--image", type=Path, default=Path("runs/vqgan/final"))
    parser.add_argument("--decoder", type=Path, help="Go on from these weights.")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    parser.add_argument("-o", "--output", type=Path, default=Path("packed"))
    args = parser.parse_args()
    args.output.mkdir(parents=True)
    parts = {"text": args.text, "image": args.image, "decoder": args.decoder}
    for name, folder in parts.items():
        if folder is not None:
            shutil.copytree(folder, args.output / name)
    documents(
        args.data, args.text, ImageTokenizer.load(args.image).size, args.cache, args.output / "documents.npz"
    )
    drawings(args.packages, args.output / "drawings.pickle.xz")


if __name__ == "__main__":
    main()
