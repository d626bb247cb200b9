"""Few passes before and after reinforcement learning: estimators at equal processor time, quality against passes.

python benchmarks/few_passes.py names --judge outputs/judge -o runs/names
python benchmarks/few_passes.py train --prompts runs/names/asked.txt --estimator coupled --seconds 100,200 -o runs/coup
python benchmarks/few_passes.py table --judge outputs/judge --asked runs/names --models pictures,runs/coup/200

`names` draws seen names at random, tries each at L/4 passes, and keeps as `asked.txt` those with the highest reward:
where no answer is worth anything nothing is learned. `others.txt` are further names at random, which are not asked.
`train` is the recipe `emoji-rl` with an estimator and a limit of processor seconds, rollouts included; a model folder
is left for each limit that is listed. `table` draws both lists by each model in several ways, with the same random
numbers for all models and others than those of `names`. Its measures are the reward, which was trained on, and the
classifier of `benchmarks/judge.py`, which was not. Errors are standard errors over names; those of differences to the
first model are paired by name.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm3kit.config import resolve
from cm3kit.evaluation.judge import Judge
from cm3kit.fill.finding import find
from cm3kit.fill.kit import load
from cm3kit.images import grid
from cm3kit.training.loop import train
from cm3kit.training.rl.prompts import read_items
from cm3kit.training.rl.recipe import RLRecipe, options_of
from cm3kit.training.rl.rewards import RewardContext, Rewards, read_settings
from cm3kit.training.rl.rollouts import Rollout, order_of, roll_out
from cm3kit.training.rl.rounds import Group
from cm3kit.training.rl.task import RLTask
from cm3kit.training.run import read_yaml, recipe_path, recipes

DRAWN: dict[str, Any] = {"decoder": "diffusion", "temperature": 0.3, "top_p": 0.9, "batch_size": 64}
TOP: dict[str, Any] = {"accept": "top", "schedule": "uniform"}
# Passes of a model that writes 64 codes in blocks of 8; the last is the default of checkpoints/pictures.
WAYS: dict[str, dict[str, Any]] = {
    "uniform, L/8": {**TOP, "steps": 1}, "uniform, L/4": {**TOP, "steps": 2},
    "ascending-eoser": {"sampler": "ascending-eoser"}, "threshold 0.7": {},
}  # fmt: skip
TRIED = "uniform, L/4"
SHOWN = "reward", "top5", "judge", "variety", "distinct"
TOLD = "reward judged", "no spread", "distinct", "passes", "ratio", "clip share", "kl", "entropy", "grad_norm"


class EnoughError(Exception):
    """The processor seconds are used up."""


def rewards_of(args: argparse.Namespace, model: str) -> Rewards:
    """The reward and the measures beside it, by the names of `SHOWN`."""
    fixed = {"name": "judged", "reference": str(args.data)}
    asked: list[dict[str, Any]] = [{**fixed, "score": "rank"}, {**fixed, "score": "top5"}]
    asked += [{"name": "judged", "classifier": str(args.judge), "score": "top5"}, {"name": "variety"}]
    return Rewards(read_settings(asked), RewardContext(find(model), "cpu"))


def drawn(
    model: str, rewards: Rewards, names: Path, way: Mapping[str, Any], count: int, seed: int
) -> tuple[dict[str, Tensor], list[Rollout], float]:
    """Measures (N,) by name, means over `count` samples of each; all samples; processor seconds of drawing one."""
    kit, items, start = load(model, "cpu"), read_items(names, "image"), time.process_time()
    options = options_of({**DRAWN, **way})
    found = roll_out(
        kit,
        [
            (item, order_of(item, options, seed, index), group)
            for group, item in enumerate(items)
            for index in range(count)
        ],
    )
    seconds = (time.process_time() - start) / len(found)
    parts = rewards([each.sample for each in found], [item.name for item in items]).parts
    values = dict(zip(SHOWN, parts.values(), strict=False))
    out = {
        name: torch.tensor([float(each or 0) for each in part]).view(-1, count).mean(1)
        for name, part in values.items()
    }
    groups = [found[first : first + count] for first in range(0, len(found), count)]
    out["distinct"] = torch.tensor([Group("", 0, tuple(each), (), {}).distinct for each in groups])
    return out, found, seconds


def choose(args: argparse.Namespace) -> None:
    """Write the lists of names."""
    known = set(Judge.load(args.judge).names)
    rows = [json.loads(line) for line in (args.data / "entries.jsonl").read_text().splitlines()]
    plain = [row["name"] for row in rows if row["split"] == "train" and ":" not in row["name"]]
    pool = [name for name in plain if name in known]
    random.Random(0).shuffle(pool)
    args.output.mkdir(parents=True, exist_ok=True)
    tried = args.output / "tried.txt"
    tried.write_text("\n".join(pool[: args.names]) + "\n", encoding="utf-8")
    rewards = rewards_of(args, args.model)
    worth_N = drawn(args.model, rewards, tried, WAYS[TRIED], 4, args.seed)[0]["reward"]
    best = sorted(range(len(worth_N)), key=lambda at: -float(worth_N[at]))[: args.most]
    asked = [pool[at] for at in best]
    for name, listed in (("asked", asked), ("others", pool[args.names : args.names + args.most])):
        (args.output / f"{name}.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    print(
        f"mean reward {float(worth_N.mean()):.3f}; asked are {', '.join(asked)}: {float(worth_N[best].mean()):.3f}"
    )


def learn(args: argparse.Namespace) -> None:
    """Train until the processor seconds are used up, and export."""
    torch.set_num_threads(1)
    shape, base = recipes["rl"]()
    given = [
        f"model={args.model}",
        f"prompts={args.prompts}",
        f"estimator={{name: {args.estimator}}}",
        *args.set,
    ]
    always = [
        "held_share=0",
        "previews=0",
        "loop.log_every=1",
        "loop.validate_every=0",
        "loop.preview_every=0",
        "loop.save_every=1000000",
    ]
    recipe = resolve(shape, [base, read_yaml(recipe_path(Path(args.config)))], [*given, *always])
    assert isinstance(recipe, RLRecipe)
    task, limits, start = RLTask(recipe), sorted(map(int, args.seconds.split(","))), time.process_time()

    def report(step: int, total: int, figures: Mapping[str, float]) -> None:
        used = time.process_time() - start
        told = {name: round(float(figures[name]), 4) for name in TOLD if name in figures}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"step": step, "cpu": round(used, 1), "peak_mb": peak, **told}), flush=True)
        while limits and used >= limits[0]:
            folder = args.output / str(limits.pop(0))
            folder.mkdir(parents=True)
            task.export(task.model, folder)
        if not limits:
            raise EnoughError

    try:
        train(task, recipe.loop, args.output / "run", device="cpu", report=report)
    except EnoughError:
        pass
    else:
        raise SystemExit(
            f"all {recipe.loop.steps} steps were taken before {limits[-1]} s were used; set loop.steps"
        )


def line(model: str, names: str, way: str, passes: float, seconds: float, rows: Mapping[str, Tensor],
         before: Mapping[str, Tensor]) -> str:  # fmt: skip
    """A line of the table; differences are to `before`, name by name."""
    cells = []
    for name in SHOWN:
        value_N = rows[name]
        error = float(value_N.std() / len(value_N) ** 0.5)
        told = f"{float(value_N.mean()):.2f}"
        cells.append(f"{told} ± {error:.2f}" if name in SHOWN[:3] else told)
    for name in ("reward", "judge"):
        apart_N = rows[name] - before[name]
        cells.append(f"{float(apart_N.mean()):+.2f} ± {float(apart_N.std() / len(apart_N) ** 0.5):.2f}")
    return f"| {' | '.join([model, names, way, f'{passes:.1f}', *cells, f'{seconds:.2f}'])} |"


def compare(args: argparse.Namespace) -> None:
    """Print the table, and write contact sheets and all values."""
    torch.set_num_threads(1)
    rewards = rewards_of(args, args.models.split(",")[0])
    heads = "model", "names", "decoding", "passes", *SHOWN, "reward, change", "judge, change", "CPU s"
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)
    kept: dict[str, Any] = {}
    first: dict[tuple[str, str], dict[str, Tensor]] = {}
    for model in args.models.split(","):
        label = "/".join(Path(model).parts[-2:])
        for names in ("asked", "others"):
            for way, how in WAYS.items():
                if args.only not in way:
                    continue
                values, found, seconds = drawn(
                    model, rewards, args.asked / f"{names}.txt", how, args.samples, args.seed
                )
                before = first.setdefault((names, way), values)
                passes = sum(each.passes for each in found) / len(found)
                print(line(label, names, way, passes, seconds, values, before), flush=True)
                kept[f"{label}/{names}/{way}"] = {name: each.tolist() for name, each in values.items()}
                if args.output:
                    show(
                        found,
                        args.samples,
                        args.output / f"{label.replace('/', '-')}-{names}-{passes:.0f}.png",
                    )
    if args.output:
        (args.output / "values.json").write_text(json.dumps(kept), encoding="utf-8")


def show(found: Sequence[Rollout], count: int, path: Path) -> None:
    """Up to four samples of each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = [each.sample for at, each in enumerate(found) if at % count < 4]
    pictures = [(each.image, each.prompt) for each in shown if each.image is not None]
    if pictures:
        grid([image for image, _ in pictures], 8, [words for _, words in pictures]).save(path)


def main() -> None:
    """Choose names, train, or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    names, learning, table = (parts.add_parser(each) for each in ("names", "train", "table"))
    for each in (names, table):
        each.add_argument("--data", type=Path, default=Path("data/emoji"))
        each.add_argument("--judge", type=Path, default=Path("outputs/judge"))
    for each in (names, learning):
        each.add_argument("--model", default="pictures")
        each.add_argument("-o", "--output", type=Path, required=True)
    names.add_argument("--names", type=int, default=48)
    names.add_argument("--most", type=int, default=8)
    names.add_argument("--seed", type=int, default=11)
    names.set_defaults(do=choose)
    learning.add_argument("-c", "--config", default="emoji-rl")
    learning.add_argument("--prompts", type=Path, required=True)
    learning.add_argument("--estimator", default="trajectory")
    learning.add_argument("--seconds", default="200")
    learning.add_argument("--set", action="append", default=[], help="a setting of the recipe, as a.b=c")
    learning.set_defaults(do=learn)
    table.add_argument(
        "--models", default="pictures", help="names or folders; the first is what others are compared to"
    )
    table.add_argument("--asked", type=Path, required=True, help="the folder of `names`")
    table.add_argument("--samples", type=int, default=8)
    table.add_argument("--seed", type=int, default=7)
    table.add_argument("--only", default="", help="decodings whose name holds this text")
    table.add_argument("-o", "--output", type=Path, help="folder of contact sheets and values")
    table.set_defaults(do=compare)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
