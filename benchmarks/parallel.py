"""What training in two processes, or in micro-batches, differs by from training in one.

python benchmarks/parallel.py [--steps 40] [--kinds cm3,mdm]

A tiny decoder is trained on pages of one colour each (those of kill.py), on the CPU in fp32, without dropout: in one
process, in micro-batches, in two processes with a copy of the weights each (DDP) and with half of them each (FSDP2),
and half of the steps in one way and the rest in another. So it is by `cm3kit train` under `accelerate launch`, at once,
and stopped by SIGTERM to the launcher and run again; there losses are those of log.jsonl, rounded to six places. Prints
the largest difference of a loss from that of one process, in nats, and of a weight at the end, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from kill import OBJECTIVES, Exact, build
from safetensors.torch import load_file

from cm3kit.config import dump
from cm3kit.models.backbone import BackboneConfig
from cm3kit.publish import newest
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.loop import LoopSettings, train

ONE, DDP, FSDP = (1, False), (2, False), (2, True)
WAYS: dict[str, list[tuple[tuple[int, bool], int]]] = {
    "micro-batches of a quarter": [(ONE, 4)],
    "2 processes, DDP": [(DDP, 1)],
    "2 processes, DDP, micro-batches of a half": [(DDP, 2)],
    "2 processes, FSDP2": [(FSDP, 1)],
    "1 process, then FSDP2": [(ONE, 1), (FSDP, 1)],
    "FSDP2, then DDP": [(FSDP, 1), (DDP, 1)],
    "FSDP2, then 1 process": [(FSDP, 1), (ONE, 1)],
    "DDP, then 1 process": [(DDP, 1), (ONE, 1)],
}
LAUNCHED = {
    "accelerate launch, DDP": (False, False),
    "accelerate launch, FSDP2": (True, False),
    "accelerate launch, DDP, stopped and resumed": (False, True),
    "accelerate launch, FSDP2, stopped and resumed": (True, True),
}


def forked(count: int, work: Any) -> None:
    """Do some work in so many processes that know of each other."""
    from accelerate.state import AcceleratorState, GradientState

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            os.environ |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "LOCAL_WORLD_SIZE": str(count),
            }
            os.environ["OMP_NUM_THREADS"] = "1"
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            work()
            if count > 1:
                torch.distributed.destroy_process_group()
            status = 0
        except BaseException as error:  # noqa: BLE001 - the parent ends with it
            print(f"process {rank}: {error!r}", file=sys.stderr)
        finally:
            os._exit(status)
    if any(os.waitpid(child, 0)[1] for child in children):
        raise SystemExit("a process has failed")


def trained(
    kind: str, corpus: Path, run: Path, loop: LoopSettings, way: list[Any]
) -> tuple[dict[int, float], Any]:
    """The loss of each step, and the last checkpoint's weights."""
    for number, ((processes, shard), accumulate) in enumerate(way, 1):
        # Settings of one process, of which a group must not be made, are those of the recipe all the same.
        settings = loop.model_copy(update={"shard": shard, "accumulate": accumulate})
        recipe = recipe_of(kind, corpus, settings)

        def work(recipe: DecoderRecipe = recipe, last: int = loop.steps * number // len(way)) -> None:
            task = DecoderTask(recipe, corpus / "cache")
            watching = Exact(run.with_suffix(f".losses{os.environ.get('RANK', 0)}"))
            train(task, recipe.loop, run, device="cpu", max_steps=last, observers=[watching])

        forked(processes, work)
    lines = run.with_suffix(".losses0").read_text().splitlines()
    losses = {int(step): float.fromhex(loss) for step, loss in (line.split() for line in lines)}
    found = newest(run, warn=lambda line: None)
    assert found is not None and len(losses) == loop.steps
    return losses, load_file(found / "state.safetensors")


def recipe_of(kind: str, corpus: Path, settings: LoopSettings) -> DecoderRecipe:
    """A tiny decoder."""
    shape = BackboneConfig(hidden_size=64, layers=4, heads=2, kv_heads=2, intermediate_size=128)
    return DecoderRecipe(
        data=corpus, text=corpus, image=corpus / "image", window=96, backbone=shape, loop=settings, previews=(),
        objective={"name": OBJECTIVES[kind]},
    )  # fmt: skip


def launched(
    kind: str, corpus: Path, run: Path, loop: LoopSettings, shard: bool, stop: bool
) -> tuple[dict[int, float], Any]:
    """The same of two processes that accelerate has launched, stopped on the way and launched again with `stop`."""
    recipe = run.with_suffix(".yaml")
    recipe.write_text(dump(recipe_of(kind, corpus, loop.model_copy(update={"shard": shard}))))
    options = (
        "--quiet --multi_gpu --num_machines 1 --num_processes 2 --mixed_precision no --dynamo_backend no"
    )
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options.split(), "-m", "cm3kit_cli"]
    command = [*launcher, "train", kind, "-c", str(recipe), "-o", str(run), "--device", "cpu", "-q"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    log = run / "log.jsonl"
    if stop:
        with subprocess.Popen(command, **quiet) as first:
            while first.poll() is None and not (log.exists() and log.stat().st_size):
                time.sleep(0.01)
            first.send_signal(signal.SIGTERM)
        if (run / "final").exists():
            raise SystemExit(f"{run} was through before it could be stopped; take more --steps")
    subprocess.run(command, check=True, **quiet)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = newest(run, warn=lambda line: None)
    assert found is not None and len(lines) == loop.steps
    return {line["step"]: line["loss"] for line in lines}, load_file(found / "state.safetensors")


def main() -> None:
    """Train in each way, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--kinds", default="cm3,mdm")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loop = LoopSettings(
        steps=args.steps, batch_size=4, precision="fp32", save_every=args.steps, preview_every=10**6, log_every=1
    )  # fmt: skip
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus, place = Path(folder) / "corpus", Path(folder) / "runs"
        corpus.mkdir()
        place.mkdir()
        build(corpus)
        for kind in args.kinds.split(","):
            losses, weights = trained(kind, corpus, place / f"{kind}-one", loop, [(ONE, 1)])
            for number, name in enumerate([*WAYS, *LAUNCHED]):
                run = place / f"{kind}-{number}"
                theirs, others = (
                    trained(kind, corpus, run, loop, WAYS[name])
                    if name in WAYS
                    else launched(kind, corpus, run, loop, *LAUNCHED[name])
                )
                apart = max(abs(losses[step] - theirs[step]) for step in losses)
                names = [each for each in weights if each.startswith("model/")]
                furthest = max(float((weights[each] - others[each]).abs().max()) for each in names)
                found[f"{kind}: {name}"] = {"loss": apart, "weight": furthest}
                print(f"{kind}: {name}: {apart:.1e} {furthest:.1e}", file=sys.stderr)
            found[f"{kind}: losses"] = [losses[1], losses[args.steps]]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
