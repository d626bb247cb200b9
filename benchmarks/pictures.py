"""Files that are meant to break readers of pictures, through cm3kit's: each is decoded or refused, by reason.

    git clone https://github.com/lunapaint/pngsuite
    git clone --depth 1 https://github.com/python-pillow/Pillow
    python benchmarks/pictures.py pngsuite/png Pillow/Tests/images

Anything that is not a picture of the store's size and kind, or a reason, is a crash.
"""

from __future__ import annotations

import argparse
import io
import time
import traceback
from collections import Counter
from pathlib import Path

from PIL import Image

from cm3kit.web.picture import store
from cm3kit.web.reasons import Refused
from cm3kit.web.settings import PictureRules
from cm3kit_tokenizers.errors import PictureError


def read(data: bytes, rules: PictureRules) -> str:
    """What becomes of a file: `decoded`, or a reason."""
    try:
        found = store(data, "x", rules)
    except Refused as refused:
        return refused.reason
    except PictureError as error:
        return error.code
    image = Image.open(io.BytesIO(found.data))
    image.load()
    if image.size != (found.width, found.height) or max(image.size) > rules.size or image.mode != "RGB":
        raise AssertionError(f"a picture of {image.size} in {image.mode}")
    return "decoded"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--verbose", action="store_true", help="name the files that are refused")
    args = parser.parse_args()
    rules = PictureRules(min_side=1, max_aspect=1e9)
    for folder in args.folders:
        counts: Counter[str] = Counter(crashes=0)
        slowest, name = 0.0, ""
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            start = time.process_time()
            try:
                what = read(path.read_bytes(), rules)
            except Exception:  # noqa: BLE001 - a crash is what is looked for
                what = "crashes"
                print("crash:", path, traceback.format_exc())
            counts[what] += 1
            slowest, name = max((slowest, name), (time.process_time() - start, path.name))
            if args.verbose and what != "decoded":
                print(what, path)
        print(
            f"{folder}: {counts.total()} files; {dict(sorted(counts.items()))}; slowest {slowest:.2f} s ({name})"
        )


if __name__ == "__main__":
    main()
