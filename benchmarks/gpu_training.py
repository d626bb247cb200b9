"""Units of `gpu.py` that train a decoder: the whole loop, single steps, the drawing of batches, kernels, memory.

All go through `DecoderTask`, its objective and `pack`, and through `one_step` or `train`, on pages that are written
here: an entry's name, a sentence of it, and a picture of 64 codes.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_common import SHIPPED, Context
from PIL import Image
from torch import Generator, Tensor, nn

from cm3kit.models.backbone import BackboneConfig
from cm3kit.rng import generator
from cm3kit.training.collate import Packed
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.loop import LoopSettings, Progress, train
from cm3kit.training.precision import accelerator
from cm3kit.training.speed import peak_flops
from cm3kit.training.step import one_step

SHAPES = {
    "tiny": dict(hidden_size=64, layers=2, heads=2, kv_heads=2, intermediate_size=128),
    "wider": dict(hidden_size=128, layers=2, heads=2, kv_heads=2, intermediate_size=256),
    "12M": dict(hidden_size=320, layers=8, heads=5, kv_heads=5, intermediate_size=864),
    "125M": dict(hidden_size=896, layers=12, heads=14, kv_heads=14, intermediate_size=2432),
    "1B": dict(hidden_size=2048, layers=20, heads=32, kv_heads=32, intermediate_size=5632),
}
BLOCKS = {
    "schedule": "linear", "weighting": "uniform", "block_size": 8, "cond_dropout": 0.0, "causal_weight": 0.5,
    "law": {"all": 0.05, "picture": 0.9, "box": 0.1},
}  # fmt: skip
WORDS = "red green blue round small old bright apple house bird hand moon flower a of with and the kind sign".split()
PAGES = 60
MANY = 128  # rows of which no two lanes should have a step at once


def corpus(where: Context) -> Path:
    """Pages with a picture each, written once for all lanes."""
    folder = where.scratch / "corpus"
    with open(where.scratch / "writing", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not folder.is_dir():
            half = where.scratch / "corpus.half"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            _write_pages(half)
            half.rename(folder)
    return folder


def _write_pages(folder: Path) -> None:
    rng = generator(5)
    for number in range(PAGES):
        picked = torch.randint(len(WORDS), (24,), generator=rng).tolist()
        name, told = (" ".join(WORDS[each] for each in part) for part in (picked[:3], picked[3:]))
        coarse = torch.randint(0, 256, (6, 6, 3), generator=rng, dtype=torch.uint8).numpy()
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.html").write_text(
            f'<title>{name}</title><h1>{name}</h1><p>{told}.</p><p><img alt="{name}" src="{number}.png"></p>'
        )


class Ready(DecoderTask):
    """Gives batches that are drawn already, and keeps the losses where they are computed."""

    ready: Iterator[Packed] | None = None

    def batch(self, rng: Generator, size: int) -> Packed:
        """The next one of those that are ready, if any are."""
        return next(self.ready) if self.ready is not None else super().batch(rng, size)

    def loss(
        self, model: nn.Module, batch: Packed, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """As it is."""
        value, figures = super().loss(model, batch, step, rng)
        self.losses = [*getattr(self, "losses", []), value.detach()]
        return value, figures


def recipe_of(
    where: Context, objective: str, packing: str, rows: int, size: str | None = None,
    loop: dict[str, Any] | None = None, **more: Any,
) -> DecoderRecipe:  # fmt: skip
    """A recipe for the pages of `corpus`, with the tokenizers that ship."""
    window, size = (384, size or "tiny") if where.tiny else (1024, size or "12M")
    asked: dict[str, Any] = {"name": objective}
    if objective == "causal-blocks":
        asked["diffusion"] = BLOCKS
    precision = "fp32" if where.tiny else "bf16"
    settings = {"steps": 1000, "batch_size": rows, "precision": precision, "warmup": 0.1, **(loop or {})}
    return DecoderRecipe.model_validate({
        "data": corpus(where), "text": SHIPPED / "text", "image": SHIPPED / "image", "objective": asked,
        "window": window, "backbone": BackboneConfig(max_positions=1024, **SHAPES[size]), "packing": packing,
        "previews": (), "loop": settings, **more,
    })  # fmt: skip


def task_of(where: Context, recipe: DecoderRecipe) -> Ready:
    """The task of a recipe; what is parsed is kept for all lanes."""
    return Ready(recipe, where.scratch / "cache")


def on(device: torch.device, batch: Packed) -> Packed:
    """A batch on a device."""
    return Packed(*(each.to(device) for each in batch))


def pinned(where: Context, batch: Packed) -> Packed:
    """A batch as `loop.workers` hands it over."""
    return Packed(*(each.pin_memory() for each in batch)) if where.cuda else batch


def mask_of(where: Context, task: DecoderTask, batch: Packed, there: Packed) -> Any:
    """The mask of a batch in the number format of training, which kernels are chosen by."""
    with torch.autocast(where.device.type, torch.bfloat16, enabled=where.cuda):
        return task._mask(batch, 0, generator(0), there)


def compiled_for(where: Context, model: nn.Module) -> nn.Module:
    """As the loop compiles it; on a CPU without a C++ compiler's work, but through the same tracing."""
    return torch.compile(model, backend="inductor" if where.cuda else "aot_eager")  # type: ignore[return-value]


def timed_steps(
    where: Context, task: Any, settings: LoopSettings, batches: Sequence[Any], steps: int
) -> dict[str, Any]:
    """Seconds of the first step, median of the later ones, and memory, by `one_step` on batches that are ready."""
    progress = Progress(task, settings, accelerator(settings.precision, "cpu" if not where.cuda else "auto"))
    model = compiled_for(where, progress.wrapped) if settings.compile else progress.wrapped
    task.ready, warned = itertools.cycle(batches), list[str]()

    def act() -> None:
        one_step(progress, model, [], warned.append)

    start = time.perf_counter()
    act()
    where.sync()
    first = time.perf_counter() - start
    took = where.seconds(act, steps, warm=3)
    found: dict[str, Any] = {"ms a step": 1e3 * took, "first step s": first, "peak GB": where.peak_gb()}
    progress.optimizer.zero_grad()
    if warned:
        found["warned"] = warned[:3]
    if settings.compile or where.cuda:
        from torch._dynamo.utils import counters

        found["graphs"] = counters["stats"].get("unique_graphs", 0)
        found["breaks"] = sum(counters["graph_break"].values())
        counters.clear()
    return found


def step(
    where: Context, objective: str, packing: str, rows: int, compiled: bool = False, size: str | None = None
) -> dict[str, Any]:
    """One setting of a training step, with ready batches in pinned memory."""
    with where.room(rows >= MANY or size == "1B"):
        where.fresh()
        recipe = recipe_of(where, objective, packing, rows, size, {"compile": compiled})
        task = task_of(where, recipe)
        drawn = [task.batch(generator(0, number), rows) for number in range(2)]
        ready = [pinned(where, each) for each in drawn]
        found = timed_steps(where, task, recipe.loop, ready, 2 if where.tiny else 8)
        there = on(where.device, drawn[0])
        found["mask"] = type(mask_of(where, task, drawn[0], there)).__name__
        found["ms of the mask"] = 1e3 * where.seconds(lambda: mask_of(where, task, drawn[0], there), 3)
    tokens, flops = task.work(rows)
    filled = float((drawn[0].documents_BT > 0).float().mean())
    seconds = found["ms a step"] / 1e3
    losses = torch.stack(task.losses).tolist()
    rate = {"tokens/s": tokens * filled / seconds, "TFLOP/s": flops / seconds / 1e12}
    if where.cuda:
        rate["MFU %"] = 100 * flops / seconds / peak_flops(str(where.device), torch.bfloat16)
    return {
        **rate, **found, "filled": filled, "M weights": sum(each.numel() for each in task.model.parameters()) / 1e6,
        "losses": [losses[0], losses[-1]],
    }  # fmt: skip


def drawing(where: Context, rows: Sequence[int]) -> dict[str, Any]:
    """Milliseconds that a batch takes to be drawn on one CPU, and to go to the device from plain and pinned memory."""
    found: dict[str, Any] = {}
    for objective, size in itertools.product(("causal-blocks", "cm3"), rows):
        task = task_of(where, recipe_of(where, objective, "dense", size, "tiny"))
        took = []
        for number in range(3):
            start = time.perf_counter()
            batch = task.batch(generator(0, number), size)
            took.append(1e3 * (time.perf_counter() - start))
        name = f"{objective}, {size} rows:"
        found[f"{name} ms drawn"] = min(took)
        found[f"{name} MB"] = sum(each.nbytes for each in batch) / 1e6
        if where.cuda:
            found[f"{name} ms moved"] = 1e3 * where.seconds(lambda b=batch: on(where.device, b), 5)  # type: ignore[misc]
            pinned = Packed(*(each.pin_memory() for each in batch))
            move = lambda b=pinned: [each.to(where.device, non_blocking=True) for each in b]  # noqa: E731
            found[f"{name} ms moved from pinned"] = 1e3 * where.seconds(move, 5)
    return found


def loop(where: Context, objective: str, packing: str) -> dict[str, Any]:
    """`train` with checkpoints, validation, previews and export, stopped half-way and taken up again."""
    every = {
        "steps": 4,
        "save_every": 2,
        "validate_every": 2,
        "validate_on": 2,
        "preview_every": 4,
        "log_every": 1,
    }
    previews = () if where.tiny else ("red apple",)
    recipe = recipe_of(where, objective, packing, 2 if where.tiny else 8, None, every, previews=previews)
    run, warned = where.scratch / f"run-{objective}", list[str]()
    shutil.rmtree(run, ignore_errors=True)
    device = "auto" if where.cuda else "cpu"
    start = time.perf_counter()
    train(task_of(where, recipe), recipe.loop, run, device=device, max_steps=2, warn=warned.append)
    final = train(task_of(where, recipe), recipe.loop, run, device=device, warn=warned.append)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    again = task_of(where, recipe_of(where, objective, "dense", 2, backbone_from=str(final)))
    files = sorted(each.relative_to(run).as_posix() for each in run.rglob("*") if each.is_file())
    return {
        "seconds": time.perf_counter() - start, "losses": [line["loss"] for line in lines], "last": lines[-1],
        "warned": warned, "files": files,
        "opened again, M weights": sum(each.numel() for each in again.model.parameters()) / 1e6,
    }  # fmt: skip


def kernels(where: Context, objective: str, packing: str, rows: int) -> dict[str, Any]:
    """Where the time of a step goes: milliseconds of kernels, of operations on the CPU, and of the mask."""
    from torch.profiler import ProfilerActivity, profile

    recipe = recipe_of(where, objective, packing, rows)
    task = task_of(where, recipe)
    ready = task.batch(generator(0, 0), rows)
    task.ready = itertools.repeat(pinned(where, ready))
    progress = Progress(task, recipe.loop, accelerator("bf16", "auto" if where.cuda else "cpu"))
    for _ in range(3):
        one_step(progress, progress.wrapped, [], lambda line: None)
    there = on(where.device, ready)
    mask = where.seconds(lambda: mask_of(where, task, ready, there), 5)
    with where.alone():
        where.sync()
        start = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            one_step(progress, progress.wrapped, [], lambda line: None)
            where.sync()
        took = 1e3 * (time.perf_counter() - start)
    found = [each for each in seen.key_averages() if each.device_type == torch.autograd.DeviceType.CUDA]
    found.sort(key=lambda each: -each.self_device_time_total)
    busy = sum(each.self_device_time_total for each in found) / 1e3
    top = {f"{each.key[:70]} x{each.count}": each.self_device_time_total / 1e3 for each in found[:16]}
    cpu = sorted(seen.key_averages(), key=lambda each: -each.self_cpu_time_total)[:12]
    return {
        "ms a step, profiled": took, "ms of kernels": busy, "ms of the mask": 1e3 * mask, "top": top,
        "on the CPU": {f"{each.key[:60]} x{each.count}": each.self_cpu_time_total / 1e3 for each in cpu},
    }  # fmt: skip


def estimate(where: Context, packing: str, rows: int) -> dict[str, Any]:
    """What `estimate` says of tensors, against what a step takes."""
    from cm3kit.training.estimate import estimate_decoder

    recipe = recipe_of(where, "causal-blocks", packing, rows)
    told = estimate_decoder(recipe, timed=False)
    held = told.weights + told.gradients + told.moments + told.average
    task = task_of(where, recipe)
    batch = [pinned(where, task.batch(generator(0, 0), rows))]
    where.fresh()
    taken = timed_steps(where, task, recipe.loop, batch, 1)["peak GB"]
    return {"estimated GB": (held + told.activations) / 1e9, "taken GB": taken, "of it held GB": held / 1e9}
