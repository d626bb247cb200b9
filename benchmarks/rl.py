"""Reinforcement learning by each estimator at equal updates: reward before and after, seconds and memory of an update.

python benchmarks/rl.py --model checkpoints/pictures --prompts names.txt [--estimators trajectory,coupled] [--steps 8]

The reward is one that any model of pictures can learn: the share of even codes. Each run is a process of its own, so
that peak memory is its own; seconds are of the processor, rollouts of a round shared by its updates included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cm3kit.training.loop import train
from cm3kit.training.rl.recipe import RLRecipe
from cm3kit.training.rl.rewards import RewardContext, RewardSettings, Sample, reward
from cm3kit.training.rl.task import RLTask

DECODINGS: dict[str, dict[str, Any]] = {
    "ascending": {"schedule": "ascending"}, "threshold": {"schedule": "uniform", "threshold": 0.5},
    "uniform": {"schedule": "uniform"},
}  # fmt: skip


@reward("even")
class Even:
    """The share of even codes."""

    Settings = RewardSettings

    def __init__(self, settings: Any, context: RewardContext) -> None:
        pass

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[float | None]:
        """See `Reward`."""
        return [sum(code % 2 == 0 for code in each.codes) / max(1, len(each.codes)) for each in samples]


def one(args: argparse.Namespace) -> dict[str, Any]:
    """Train once, and measure."""
    torch.set_num_threads(1)
    causal = args.estimators == "causal"
    sampling: dict[str, Any] = {
        "temperature": 1.0,
        "top_p": 1.0,
        "batch_size": 32,
        "decoder": "cm3" if causal else "diffusion",
    }
    sampling |= {} if causal else DECODINGS[args.decodings]
    loop = {
        "steps": args.steps, "batch_size": args.batch, "learning_rate": args.rate, "final": 1.0, "warmup": 0.0,
        "ema": 0.0, "clip": 1.0, "weight_decay": 0.0, "log_every": 1, "validate_every": 0, "preview_every": 10**6,
        "save_every": 10**6, "precision": "fp32", "seed": args.seeds,
    }  # fmt: skip
    recipe = RLRecipe.model_validate(
        {"model": args.model, "prompts": args.prompts, "held_share": 0, "sampling": sampling, "rewards": ["even"],
         "estimator": args.estimators, "group": args.group, "updates": 2, "rows": 64, "previews": 0, "loop": loop}
    )  # fmt: skip
    task, found = RLTask(recipe), list[dict[str, float]]()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        train(
            task,
            recipe.loop,
            Path(folder) / "run",
            device="cpu",
            report=lambda step, of, each: found.append(each),
        )
    return {
        "estimator": args.estimators, "decoding": "left to right" if causal else args.decodings, "seed": args.seeds,
        "before": round(found[0]["reward"], 3), "after": round(found[-1]["reward"], 3),
        "passes": round(found[0]["passes"], 1), "distinct": round(found[-1]["distinct"], 2),
        "cpu_seconds_an_update": round((time.process_time() - start) / args.steps, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def main() -> None:
    """Every estimator under every decoding and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pictures")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--estimators", default="one-pass,coupled,trajectory,causal")
    parser.add_argument("--decodings", default="ascending")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        args.seeds = int(args.seeds)
        print(json.dumps(one(args)))
        return
    for estimator in args.estimators.split(","):
        for decoding in args.decodings.split(",") if estimator != "causal" else ("ascending",):
            for seed in args.seeds.split(","):
                own = {
                    "model": args.model, "prompts": args.prompts, "estimators": estimator, "decodings": decoding,
                    "seeds": seed, "steps": args.steps, "batch": args.batch, "group": args.group, "rate": args.rate,
                }  # fmt: skip
                flags = [part for name, value in own.items() for part in (f"--{name}", str(value))]
                subprocess.run([sys.executable, __file__, *flags, "--alone"], check=True)


if __name__ == "__main__":
    main()
