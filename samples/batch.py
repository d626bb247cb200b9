"""Draw every prompt of a file, several times, from Python: python samples/batch.py samples/prompts.txt outputs/batch"""

from __future__ import annotations

import sys
from pathlib import Path

import cm3kit
from cm3kit.images import encode_png, grid


def main(prompts: Path, folder: Path, n: int = 4) -> None:
    """Write one PNG a sample and a sheet of all."""
    kit = cm3kit.load("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    pictures, captions = [], []
    for row, prompt in enumerate(prompts.read_text(encoding="utf-8").splitlines()):
        for result in kit.generate(prompt, n=n, seed=row):
            assert result.image is not None
            path = folder / f"{row:03d}-{result.index}.png"
            path.write_bytes(encode_png(result.image, {"prompt": prompt, "seed": row, "index": result.index}))
            pictures.append(result.image)
            captions.append(prompt)
    grid(pictures, columns=n, captions=captions).save(folder / "grid.png")
    print(folder / "grid.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
