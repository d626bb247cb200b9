"""How training bears SIGKILL at random moments, half of them inside a save, and a restart from every step.

python benchmarks/kill.py [--kills 100] [--every-step] [--kinds cm3,mdm,vqgan]

A tiny model is trained on pages of one colour each, by `cm3kit.training.loop.train` on the CPU in fp32, in processes
forked from one that has everything loaded. A killed run is started again in the same folder until it is done, and
then compared with one that nothing stopped: the exact loss of every step, also of those that were taken twice, and
the tensors of the last checkpoint. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cm3kit.models.backbone import BackboneConfig
from cm3kit.publish import newest, verify
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.loop import LoopSettings, Progress, train
from cm3kit.training.observe import Seen
from cm3kit.training.vqgan import CodebookSettings, VqganRecipe, VqganTask
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig

COLOURS = ("red", "green", "blue", "black", "orange", "purple")
OBJECTIVES = {"cm3": "cm3", "mdm": "masked-diffusion", "block": "block-diffusion", "hybrid": "hybrid"}
PICTURES = ImageTokenizerConfig(
    resolution=16, channels=(8, 8, 8), codes=32, code_dim=4, latent_channels=8, norm_groups=8, attention=False
)


def build(folder: Path) -> None:
    """Pages with a picture of one colour, and tokenizers for them."""
    for colour in COLOURS:
        Image.new("RGB", (16, 16), colour).save(folder / f"{colour}.png")
        page = f'<title>{colour}</title><p>A {colour} square: <img alt="{colour}" src="{colour}.png"></p>'
        (folder / f"{colour}.html").write_text(page)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        ImageTokenizer(PICTURES).save(folder / "image")
    TextTokenizer.train(["a red green blue black orange purple square"] * 2, 280).save(folder)


def task_of(kind: str, corpus: Path, loop: LoopSettings) -> Any:
    """What is trained."""
    if kind == "vqgan":
        codes = CodebookSettings(start=7)
        return VqganTask(VqganRecipe(data=corpus, tokenizer=PICTURES, codebook=codes, loop=loop))
    shape = BackboneConfig(hidden_size=32, layers=2, heads=2, kv_heads=2, intermediate_size=64, dropout=0.1)
    recipe = DecoderRecipe(
        data=corpus, text=corpus, image=corpus / "image", window=96, backbone=shape, loop=loop, previews=(),
        objective={"name": OBJECTIVES[kind]},
    )  # fmt: skip
    return DecoderTask(recipe, corpus / "cache")


class Exact:
    """Writes down the exact loss of every step that is taken."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", buffering=1)

    def begin(self, step: int, total: int) -> None:
        """Steps to come may be in the file already, and must be the same."""

    def saw(self, seen: Seen) -> None:
        """One line."""
        self.file.write(f"{seen.step} {float(seen.figures['loss']).hex()}\n")

    def end(self) -> None:
        """Nothing is left."""
        self.file.close()


def losses(path: Path) -> dict[int, set[str]]:
    """Every loss that was seen of each step; a line that a kill has cut short is left out."""
    found: dict[int, set[str]] = {}
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            step, loss = line.split()
            found.setdefault(int(step), set()).add(loss)
    return found


def digest(run: Path) -> str:
    """A hash of the tensors of the last checkpoint."""
    found = newest(run, warn=lambda line: None)
    assert found is not None
    return hashlib.sha256((found / "state.safetensors").read_bytes()).hexdigest()


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Fork a process that does some work; its id, and a pipe that it can write to."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        work(writing)
        status = 0
    except BaseException as error:  # noqa: BLE001 - the parent counts it
        print(f"a run has failed: {error!r}", file=sys.stderr)
    finally:
        os._exit(status)


def running(task: Any, loop: LoopSettings, run: Path, halt: int | None) -> Callable[[int], None]:
    """Training that tells each step once its checkpoint is said to be saved.

    With `halt` it stops for a second at that call of fsync or rename inside a save, for the parent to kill it there.
    """

    def work(pipe: int) -> None:
        saving, calls = [False], [0]
        real_save = Progress.save

        def save(progress: Progress, folder: Path) -> None:
            saving[0] = True
            real_save(progress, folder)
            saving[0] = False
            os.write(pipe, f"saved {progress.step}\n".encode())

        def slow(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **more: Any) -> Any:
                if saving[0] and halt is not None:
                    calls[0] += 1
                    if calls[0] == halt:
                        os.write(pipe, b"here\n")
                        time.sleep(60)
                return real(*given, **more)

            return call

        Progress.save = save  # type: ignore[method-assign]
        os.fsync, os.rename = slow(os.fsync), slow(os.rename)
        os.write(pipe, b"begun\n")
        train(task, loop, run, device="cpu", observers=[Exact(run.with_suffix(".losses"))])

    return work


def watch(child: int, pipe: int, delay: float | None) -> tuple[bool, int]:
    """Kill a child `delay` seconds after it has begun, or where it halts; whether it was, and the last step saved."""
    told, until, killed = b"", float("inf"), False
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, min(60.0, until - time.monotonic())))
        if ready:
            more = os.read(pipe, 4096)
            if not more:
                break
            if b"begun" in more and delay is not None:
                until = time.monotonic() + delay
            told += more
        if b"here" in told or time.monotonic() >= until:
            os.kill(child, signal.SIGKILL)
            killed, until = True, float("inf")
            told = told.replace(b"here", b"")
    _, status = os.waitpid(child, 0)
    os.close(pipe)
    if not killed and status:
        raise SystemExit("a run has failed by itself")
    saved = [int(line.split()[1]) for line in told.decode().splitlines() if line.startswith("saved")]
    return killed and os.WIFSIGNALED(status), max(saved, default=0)


def kill(
    kind: str, kills: int, corpus: Path, place: Path, loop: LoopSettings, dice: random.Random
) -> dict[str, Any]:
    """So many kills of runs of a kind."""
    task, straight = task_of(kind, corpus, loop), place / f"{kind}-straight"
    started = time.monotonic()
    watch(*in_child(running(task, loop, straight, None)), None)
    usual = time.monotonic() - started
    known, end = losses(straight.with_suffix(".losses")), digest(straight)
    count = dict.fromkeys(("kills", "inside_save", "resumed", "newest_unloadable", "acknowledged_lost"), 0)
    count |= {"steps_lost_most": 0, "runs": 0, "runs_bit_equal": 0, "left_temporary": 0}
    acknowledged, run, taken_before = 0, place / f"{kind}-0", 0
    while count["kills"] < kills:
        inside = count["kills"] % 2 == 1
        halt = dice.randrange(1, 40) if inside else None
        child = in_child(running(task, loop, run, halt))
        killed, saved = watch(*child, None if inside else dice.uniform(0, usual))
        acknowledged = max(acknowledged, saved)
        count["resumed"] += taken_before > 0
        if killed:
            count["kills"] += 1
            count["inside_save"] += inside
            folders = sorted(path for path in run.glob("step-*") if path.name[5:].isdigit())
            count["newest_unloadable"] += bool(folders) and verify(folders[-1]) is not None
            found = newest(run, warn=lambda line: None)
            step = int(found.name[5:]) if found else 0
            count["acknowledged_lost"] += step < acknowledged
            seen = losses(run.with_suffix(".losses")) if run.with_suffix(".losses").exists() else {}
            taken_before = step
            count["steps_lost_most"] = max(count["steps_lost_most"], max(seen, default=0) - step)
            print(f"\r{kind} {count['kills']}/{kills}", end="", file=sys.stderr)
        if not killed or count["kills"] == kills:
            if killed:
                watch(*in_child(running(task, loop, run, None)), None)
            count["runs"] += 1
            count["runs_bit_equal"] += losses(run.with_suffix(".losses")) == known and digest(run) == end
            count["left_temporary"] += len(list(run.rglob(".tmp-*")))
            shutil.rmtree(run)
            run, acknowledged, taken_before = place / f"{kind}-{count['runs']}", 0, 0
    return count


def every_step(kind: str, corpus: Path, place: Path, loop: LoopSettings) -> dict[str, int]:
    """A run that keeps all checkpoints, and one that goes on from each of them."""
    all_kept = loop.model_copy(update={"save_every": 1, "keep": 10**6})
    task, whole = task_of(kind, corpus, all_kept), place / f"{kind}-whole"
    watch(*in_child(running(task, all_kept, whole, None)), None)
    known, end, equal = losses(whole.with_suffix(".losses")), digest(whole), 0
    for step in range(1, loop.steps):
        run = place / f"{kind}-from-{step}"
        run.mkdir()
        shutil.copytree(whole / f"step-{step:08d}", run / f"step-{step:08d}")
        watch(*in_child(running(task, all_kept, run, None)), None)
        later = {number: loss for number, loss in known.items() if number > step}
        equal += losses(run.with_suffix(".losses")) == later and digest(run) == end
        shutil.rmtree(run)
        print(f"\r{kind} from step {step}/{loop.steps}", end="", file=sys.stderr)
    return {"resumed_from": loop.steps - 1, "bit_equal": equal}


def main() -> None:
    """Kill, and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="of each kind")
    parser.add_argument("--every-step", action="store_true", help="go on from every step too")
    parser.add_argument("--kinds", default="cm3,mdm,vqgan")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loop = LoopSettings(
        steps=args.steps, batch_size=2, precision="fp32", save_every=3, preview_every=10**6, log_every=1, keep=2
    )  # fmt: skip
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus, place = Path(folder) / "corpus", Path(folder) / "runs"
        corpus.mkdir(), place.mkdir()
        build(corpus)
        for kind in args.kinds.split(","):
            found[kind] = kill(kind, args.kills, corpus, place, loop, random.Random(args.seed))
            if args.every_step:
                found[kind] |= every_step(kind, corpus, place, loop)
            print(f"\r{kind} {found[kind]}", file=sys.stderr)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
