"""Units of `gpu.py` that compare the device with the CPU: ids, losses and codes, without TF32."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from gpu_common import SHIPPED, Context
from gpu_training import corpus, on, recipe_of, task_of

from cm3kit.decoders.engines import make_engine
from cm3kit.fill.kit import GenerateOptions, Kit, load
from cm3kit.rng import generator
from cm3kit.types import Canvas, Fill
from cm3kit_tokenizers.vq.model import ImageTokenizer

PROMPTS = (
    "red apple",
    "waving hand: dark skin tone",
    "blue heart",
    "flag: Italy",
    "old house",
    "bright moon",
)
CLOSE = 1e-4


@lru_cache(maxsize=2)
def kit_on(device: str) -> Kit:
    """The model that ships."""
    return load(SHIPPED, device)


def exact(where: Context) -> None:
    """No TF32, in products and in convolutions."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def ids(
    where: Context,
    decoder: str,
    task: str,
    precision: str | None = None,
    sampler: str | None = None,
    compile: str | None = None,
) -> dict[str, Any]:
    """Ids at temperature 0 on the device and on the CPU, with equal settings.

    For the causal decoder, where a row differs, what the CPU's model prefers its own id by (a difference of logits,
    under which rounding may decide) at the first place that differs.
    """
    exact(where)
    options = GenerateOptions(temperature=0.0, decoder=decoder, precision="fp32", sampler=sampler)  # type: ignore[arg-type]
    mode = compile if where.cuda else None  # without a GPU there is nothing to compile, and it is refused
    faster = replace(options, precision=precision or "fp32", compile=mode)  # type: ignore[arg-type]
    count = 2 if where.tiny else len(PROMPTS)
    pictures = [corpus(where) / f"{number}.png" for number in range(count)]
    prompts = list(PROMPTS[:count]) if task == "image" else pictures
    cpu, other = kit_on("cpu"), kit_on(str(where.device))
    # Codes of a picture that is read are the CPU's for both: it is the decoders that are compared.
    pages = [cpu._page_of(task, prompt) for prompt in prompts]  # type: ignore[arg-type]
    wrote = []
    for kit, chosen in ((cpu, options), (other, faster)):
        filler = kit.filler(chosen)
        asked = [filler.task(task, page, chosen, 0) for page in pages]  # type: ignore[arg-type]
        answers = filler.fill(asked, chosen, lambda done, total: None)
        wrote.append((asked, [answer.fills for answer in answers]))
    (asked, mine), (_, theirs) = wrote
    pairs = [
        (a, b) for ours, others in zip(mine, theirs, strict=True) for a, b in zip(ours, others, strict=True)
    ]
    found: dict[str, Any] = {
        "rows": count, "ids": sum(len(fill.ids) for fill, _ in pairs),
        "equal rows": sum(a.ids == b.ids for a, b in pairs),
        "ids before the first that differs": sum(_common(a, b) for a, b in pairs),
    }  # fmt: skip
    if decoder == "cm3":
        margins = [
            _margin(cpu, canvas, ours[0], others[0])
            for canvas, ours, others in zip(asked, mine, theirs, strict=True)
            if ours[0].ids != others[0].ids
        ]
        found["margins"] = margins
        found["as wanted"] = all(margin < CLOSE for margin in margins)
    return found


def _common(a: Fill, b: Fill) -> int:
    return next(
        (place for place, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y),
        min(len(a.ids), len(b.ids)),
    )


def _margin(kit: Kit, canvas: Canvas, ours: Fill, others: Fill) -> float:
    """By how much the CPU's model prefers its own id to the other's, where they first differ; an end is an id, too."""
    place, (span,) = _common(ours, others), canvas.spans
    engine = make_engine(kit.backbone, len(kit.vocab), "fp32", 4)
    logits_V = engine.score([*canvas.ids, *span.lead, *ours.ids[:place]])[-1]
    end = kit.vocab.eoss if span.end is None else span.end
    chosen = [fill.ids[place] if place < len(fill.ids) else fill.end or end for fill in (ours, others)]
    return float(logits_V[chosen[0]] - logits_V[chosen[1]])


def losses(where: Context, objectives: Sequence[str]) -> dict[str, Any]:
    """Differences of losses, device less CPU, in nats: dense in fp32, packed in tiles in fp32, and dense in bf16."""
    exact(where)
    found: dict[str, Any] = {}
    for objective in objectives[: 2 if where.tiny else None]:
        start = str(SHIPPED / "decoder")
        tasks = {}
        for packing in ("dense", "flex") if where.cuda else ("dense",):
            recipe = recipe_of(where, objective, packing, 4, backbone_from=start, window=512)
            tasks[packing] = task_of(where, recipe)
        task = tasks["dense"]
        batch = task.batch(generator(3), 4)
        with torch.no_grad():
            told = float(task.loss(task.model, batch, 0, generator(4))[0])
            found[f"{objective}: loss"] = told
            batch = on(where.device, batch)
            for packing, each in tasks.items():
                each.model.to(where.device)
                value = float(each.loss(each.model, batch, 0, generator(4))[0])
                found[f"{objective}: {packing}"] = value - told
            with torch.autocast(where.device.type, torch.bfloat16):
                value = float(task.loss(task.model, batch, 0, generator(4))[0])
            found[f"{objective}: bits of bf16"] = (value - told) / math.log(2)
    exactly = [abs(value) for name, value in found.items() if name.endswith((": dense", ": flex"))]
    found["largest"], found["as wanted"] = max(exactly), max(exactly) < CLOSE
    return found


def batches(where: Context, decoder: str, precision: str) -> dict[str, Any]:
    """Samples of seeds that are others at batch 3 or 16 than alone: `--precision auto` is a format that has none."""
    exact(where)
    kit, count = kit_on(str(where.device)), 4 if where.tiny else 17
    drawn: dict[int, list[Any]] = {}
    for size in (1, 3, 16):
        options = GenerateOptions(decoder=decoder, precision=precision, batch_size=size, temperature=1.0)  # type: ignore[arg-type]
        if decoder == "diffusion":
            options = replace(options, steps=8)
        drawn[size] = [each.codes for each in kit.generate(PROMPTS[0], n=count, seed=1, options=options)]
    others = {size: sum(a != b for a, b in zip(drawn[1], drawn[size], strict=True)) for size in (3, 16)}
    return {"samples": count, **{f"others at batch {size}": each for size, each in others.items()}}


def kernels(where: Context, objectives: Sequence[str]) -> dict[str, Any]:
    """Loss (nats) and gradients of each way to keep documents apart, in bf16, against a dense mask's.

    xformers says in a line where it cannot run, and the mask that stood in for it is named.
    """
    exact(where)
    found: dict[str, Any] = {}
    for objective, packing in itertools.product(objectives, ("dense", "documents", "xformers", "flex")):
        if packing == "flex" and not where.cuda:
            continue
        name = f"{objective}, {packing}"
        recipe = recipe_of(where, objective, packing, 4, backbone_from=str(SHIPPED / "decoder"), window=512)
        task = task_of(where, recipe)
        task.model.to(where.device)
        batch = task.batch(generator(3), 4)
        with warnings.catch_warnings(record=True) as said, torch.autocast(where.device.type, torch.bfloat16):
            warnings.simplefilter("always")
            mask = task._mask(batch, 0, generator(4), on(where.device, batch))
            loss = task.loss(task.model, batch, 0, generator(4))[0]
        loss.backward()  # type: ignore[no-untyped-call]
        length = torch.stack(
            [each.grad.norm() for each in task.model.parameters() if each.grad is not None]
        ).norm()
        found[name] = {
            "mask": getattr(mask, "kernel", type(mask).__name__),
            "loss": loss.item(),
            "gradient": length.item(),
        }
        if said:
            found[name]["said"] = [str(each.message) for each in said]
        plain = found[f"{objective}, dense"]
        apart = max(abs(found[name][each] / plain[each] - 1) for each in ("loss", "gradient"))
        found["largest"] = max(found.get("largest", 0.0), apart)
    found["as wanted"] = found["largest"] < 2**-6  # bf16 has eight bits
    return found


def codes(where: Context) -> dict[str, Any]:
    """Share of codes that differ from the CPU's: in fp32, with TF32 in convolutions, and in bf16."""
    tokenizer = ImageTokenizer.load(SHIPPED / "image")
    from cm3kit.data.pictures import load_pictures

    pixels_BCHW = load_pictures(corpus(where), tokenizer).pixels_BCHW
    wanted_BN, found = tokenizer.encode(pixels_BCHW), {}
    tokenizer.to(where.device)
    for name in ("fp32", "TF32", "bf16"):
        torch.backends.cudnn.allow_tf32 = name == "TF32"
        if name == "bf16":
            tokenizer.lower(torch.bfloat16)
        got_BN = tokenizer.encode(pixels_BCHW.to(where.device)).cpu()
        found[f"{name}: share that differs"] = float((got_BN != wanted_BN).float().mean())
    return found
