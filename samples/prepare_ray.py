"""Prepare and encode with Ray Data: python samples/prepare_ray.py samples/pages outputs/prepared"""

from __future__ import annotations

import sys
from pathlib import Path

import ray

from cm3kit.fill.finding import find
from cm3kit.web.ray import Encode, prepare
from cm3kit.web.sources import SourceOptions


def main(place: str, output: Path) -> None:
    """One task a piece; then the pictures' codes, by one actor, which on a cluster holds a GPU (`num_gpus=1`)."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    print(prepare(place, output, options=SourceOptions(pages=10)))
    pictures = ray.data.read_binary_files(str(output / "pictures"))
    image = str(find("pictures") / "image")
    codes = pictures.map_batches(Encode, fn_constructor_args=(image,), batch_size=16, concurrency=1)
    for row in codes.select_columns(["codes"]).take(3):
        print(row["codes"][:8])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
