"""Units of `gpu.py` about the image tokenizer: the whole loop, single steps of its recipe, encoding and decoding."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from gpu_common import ROOT, SHIPPED, Context
from gpu_training import corpus, timed_steps
from torch import Generator, Tensor

from cm3kit.config import read_yaml, resolve
from cm3kit.rng import generator
from cm3kit.training.loop import train
from cm3kit.training.vqgan import VqganRecipe, VqganTask
from cm3kit_tokenizers.vq.model import ImageTokenizer

TINY = {
    "resolution": 16, "channels": [8, 8, 8], "codes": 32, "code_dim": 4, "latent_channels": 8, "norm_groups": 8,
    "attention": False,
}  # fmt: skip


class Ready(VqganTask):
    """Gives batches that are drawn already."""

    ready: Iterator[Tensor] | None = None

    def batch(self, rng: Generator, size: int) -> Tensor:
        """The next one of those that are ready, if any are."""
        return next(self.ready) if self.ready is not None else super().batch(rng, size)


def recipe_of(where: Context, rows: int, **loop: Any) -> VqganRecipe:
    """The recipe of the tokenizer that ships, on the pictures of `corpus`."""
    shipped = read_yaml(ROOT / "cm3kit" / "training" / "recipes" / "emoji-vqgan.yaml")
    small = {"tokenizer": TINY} if where.tiny else {}
    own = {"data": corpus(where), "loop": {"batch_size": rows, **loop}}
    return resolve(VqganRecipe, [shipped, small, own])


def step(where: Context, rows: int, precision: str, compiled: bool) -> dict[str, Any]:
    """One setting of a training step, with codes that have started, on batches that are ready on the device."""
    recipe = recipe_of(where, rows, precision=precision, compile=compiled)
    task, took = Ready(recipe), []
    for number in range(3):
        start = time.perf_counter()
        drawn = task.batch(generator(0, number), rows)
        took.append(1e3 * (time.perf_counter() - start))
    task.model.to(where.device)
    task._start_codes(rows, generator(1), batches=3)
    found = timed_steps(where, task, recipe.loop, [drawn.to(where.device)], 2 if where.tiny else 8)
    _, flops = task.work(rows)
    seconds = found["ms a step"] / 1e3
    return {
        "pictures/s": rows / seconds, "TFLOP/s": flops / seconds / 1e12, **found,
        "ms drawn": statistics.median(took),
    }  # fmt: skip


def loop(where: Context) -> dict[str, Any]:
    """`train` with codes that start, checkpoints, validation, previews and export, stopped and taken up again."""
    every = {
        "steps": 4,
        "save_every": 2,
        "validate_every": 2,
        "validate_on": 2,
        "preview_every": 2,
        "log_every": 1,
    }
    recipe = recipe_of(where, 4, **every)
    recipe = recipe.model_copy(update={"codebook": recipe.codebook.model_copy(update={"start": 2})})
    run, warned = where.scratch / "run-vqgan", list[str]()
    shutil.rmtree(run, ignore_errors=True)
    device, start = "auto" if where.cuda else "cpu", time.perf_counter()
    train(VqganTask(recipe), recipe.loop, run, device=device, max_steps=2, warn=warned.append)
    final = train(VqganTask(recipe), recipe.loop, run, device=device, warn=warned.append)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    again = ImageTokenizer.load(final).to(where.device)
    drawn = again.decode(again.encode(VqganTask(recipe).pictures.held_out(2).to(where.device)))
    return {
        "seconds": time.perf_counter() - start, "losses": [line["loss"] for line in lines], "last": lines[-1],
        "warned": warned, "drawn again": list(drawn.shape), "previews": len(list((run / "previews").iterdir())),
    }  # fmt: skip


def coding(where: Context, rows: Sequence[int]) -> dict[str, Any]:
    """Pictures a second that the tokenizer that ships encodes and decodes."""
    found: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        tokenizer = ImageTokenizer.load(SHIPPED / "image").to(where.device)
        if precision == "bf16":
            tokenizer.lower(torch.bfloat16)
        for count in rows:
            shape, rng = (count, 3, 64, 64), generator(1)
            pixels_BCHW = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8).to(where.device)
            codes_BN = tokenizer.encode(pixels_BCHW)
            repeats = 1 if where.tiny else 5
            encoding = where.seconds(lambda t=tokenizer, x=pixels_BCHW: t.encode(x), repeats)  # type: ignore[misc]
            decoding = where.seconds(lambda t=tokenizer, x=codes_BN: t.decode(x), repeats)  # type: ignore[misc]
            found[f"{precision}, {count}: encoded/s"] = count / encoding
            found[f"{precision}, {count}: decoded/s"] = count / decoding
    return found
