"""Sample prompts with Ray Data (an extra): python samples/sample_ray.py samples/prompts.txt outputs/ray"""

from __future__ import annotations

import sys
from pathlib import Path

import ray

from cm3kit.batch.ray import Sample


def main(prompts: Path, output: Path) -> None:
    """One actor; on a cluster several, each with a GPU (`concurrency=8, num_gpus=1`)."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    lines = prompts.read_text(encoding="utf-8").splitlines()
    rows = [{"id": str(place), "prompt": line} for place, line in enumerate(lines)]
    made = ray.data.from_items(rows).map_batches(
        Sample, fn_constructor_kwargs={"model": "pictures", "seed": 1}, batch_size=16, concurrency=1
    )
    output.mkdir(parents=True, exist_ok=True)
    for row in made.iter_rows():
        if row["error"]:
            print(f"{row['id']}: {row['error']}", file=sys.stderr)
            continue
        path = output / f"{row['id']}{row['suffix']}"
        path.write_bytes(row["content"])
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
