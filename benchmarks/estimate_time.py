"""Seconds of a training step as `cm3kit estimate` tells them, and as a training takes them: processor time, one thread.

    OMP_NUM_THREADS=1 python benchmarks/estimate_time.py --run my-model/.runs

takes the tokenizers and shards of a model that `cm3kit train all` made and did not clean.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from cm3kit.config import read_yaml, resolve
from cm3kit.training import trial
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.estimate import estimate_decoder
from cm3kit.training.loop import train
from cm3kit.training.observe import Seen
from cm3kit.training.run import recipe_path

CASES = ("tiny-cm3", "tiny-mdm", "tiny-block", "small-cm3")


class Clock:
    """Processor time between steps, the first ones left out."""

    def __init__(self, skip: int) -> None:
        self.skip, self.times = skip, [time.process_time()]

    def begin(self, step: int, total: int) -> None:
        """Start."""
        self.times = [time.process_time()]

    def saw(self, seen: Seen) -> None:
        """A step is over."""
        self.times.append(time.process_time())

    def end(self) -> None:
        """Nothing to do."""

    def mean(self) -> float:
        """Seconds of a step."""
        kept = self.times[self.skip :]
        return (kept[-1] - kept[0]) / (len(kept) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the .runs folder of a model")
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    trial.time.perf_counter = time.process_time  # what others do on this machine is not counted
    own = {"data": f"{args.run}/shards", "text": f"{args.run}/text/final", "image": f"{args.run}/image/final"}
    loop = {"steps": args.steps, "save_every": 10**6, "preview_every": 0, "validate_every": 0}
    print("| recipe | estimated, s | taken, s | error |\n|---|---|---|---|")
    for name in args.cases:
        recipe = resolve(DecoderRecipe, [read_yaml(recipe_path(Path(name))), own, {"loop": loop}])
        told = estimate_decoder(recipe).seconds_per_step or 0.0
        clock = Clock(3)
        with tempfile.TemporaryDirectory() as folder:
            task = DecoderTask(recipe, Path(folder) / "cache")
            train(
                task,
                recipe.loop,
                Path(folder) / "run",
                device="cpu",
                observers=[clock],
                max_steps=args.steps - 1,
            )
        taken = clock.mean()
        print(f"| {name} | {told:.3f} | {taken:.3f} | {told / taken - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    main()
