"""What `gpu.py` measures: the units of each part, in their order, by name and without PyTorch.

A unit is one setting. It runs in a process that others may have used before it, has a limit of its own, and its
failure is its own result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PARTS = ("ceilings", "training", "pictures", "correctness", "decoding", "diffusion", "memory", "large")


@dataclass(frozen=True)
class Unit:
    """One setting: `function` is `module:function`, called with a context and `options`.

    `limit` is in seconds; `cuda` units are skipped on a CPU.
    """

    part: str
    name: str
    function: str
    options: dict[str, Any] = field(default_factory=dict)
    limit: float = 60.0
    cuda: bool = False

    @property
    def key(self) -> str:
        """Unique name."""
        return f"{self.part}/{self.name}"


def units(parts: tuple[str, ...], tiny: bool) -> list[Unit]:
    """The units of some parts, in the order of the parts and then of their worth."""
    made = {
        "ceilings": _ceilings, "training": _training, "pictures": _pictures, "correctness": _correctness,
        "decoding": _decoding, "diffusion": _diffusion, "memory": _memory, "large": _large,
    }  # fmt: skip
    return [unit for part in parts for unit in made[part](tiny)]


def _ceilings(tiny: bool) -> list[Unit]:
    return [Unit("ceilings", "copy and product", "gpu_common:ceilings", limit=60)]


def _step(name: str, part: str = "training", **options: Any) -> Unit:
    compiled = ", compiled" if options.get("compiled") else ""
    name = f"{options['objective']}, {name}, {options['rows']} rows{compiled}"
    return Unit(
        part, name, "gpu_training:step", options, 120 if compiled else 90, options["packing"] == "flex"
    )


def _training(tiny: bool) -> list[Unit]:
    few, many = (2, 3) if tiny else (32, 128)
    blocks, left = {"objective": "causal-blocks"}, {"objective": "cm3"}
    whole = Unit(
        "training", "whole loop, causal-blocks, auto", "gpu_training:loop", {**blocks, "packing": "auto"}, 90
    )
    drawing = Unit(
        "training", "drawing batches on the CPU", "gpu_training:drawing", {"rows": (few, many)}, 60
    )
    if tiny:
        return [
            whole, drawing, _step("dense", rows=few, packing="dense", **blocks),
            _step("dense", rows=many, packing="dense", compiled=True, **blocks),
            _step("flex", rows=few, packing="flex", **blocks),
            _step("documents", rows=few, packing="documents", **left),
        ]  # fmt: skip
    return [
        whole,
        _step("dense", rows=few, packing="dense", **blocks),
        _step("flex", rows=few, packing="flex", compiled=True, **blocks),
        _step("dense", rows=few, packing="dense", compiled=True, **blocks),
        _step("flex", rows=few, packing="flex", **blocks),
        drawing,
        _step("flex", rows=many, packing="flex", **blocks),
        _step("flex", rows=many, packing="flex", compiled=True, **blocks),
        _step("dense", rows=few, packing="dense", **left),
        _step("flex", rows=few, packing="flex", **left),
        _step("flex", rows=few, packing="flex", compiled=True, **left),
        _step("dense", rows=few, packing="dense", compiled=True, **left),
        _step("documents", rows=few, packing="documents", compiled=True, **left),
        _step("xformers", rows=few, packing="xformers", **left),
        _step("documents", rows=few, packing="documents", **left),
        Unit("training", "kernels of a step", "gpu_training:kernels", {**blocks, "packing": "flex", "rows": few}, 60,
             cuda=True),
        _step("dense", rows=many, packing="dense", **blocks),
        _step("dense", rows=many, packing="dense", **left),
        _step("dense", rows=many, packing="dense", compiled=True, **blocks),
        _step("flex", rows=many, packing="flex", compiled=True, **left),
    ]  # fmt: skip


def _pictures(tiny: bool) -> list[Unit]:
    few, many = (2, 3) if tiny else (64, 256)

    def step(rows: int, precision: str, compiled: bool = False) -> Unit:
        name = f"vqgan step, {precision}, {rows} pictures{', compiled' if compiled else ''}"
        options = {"rows": rows, "precision": precision, "compiled": compiled}
        return Unit("pictures", name, "gpu_pictures:step", options, 120 if compiled else 60)

    found = [
        Unit("pictures", "whole loop of vqgan", "gpu_pictures:loop", {}, 60),
        step(many, "bf16"), step(many, "fp32"), step(few, "bf16"), step(few, "fp32"),
        step(many, "bf16", compiled=True), step(many, "fp32", compiled=True),
        Unit("pictures", "encode and decode", "gpu_pictures:coding", {"rows": (1,) if tiny else (few, many)}, 60),
    ]  # fmt: skip
    return found if not tiny else [found[at] for at in (0, 1, 7)]


def _correctness(tiny: bool) -> list[Unit]:
    def ids(name: str, **options: Any) -> Unit:
        return Unit("correctness", name, "gpu_answers:ids", options, 60)

    objectives = ("cm3", "next-token", "masked-diffusion", "block-diffusion", "causal-blocks", "hybrid")
    found = [
        ids("cm3, pictures", decoder="cm3", task="image"),
        ids("cm3, captions", decoder="cm3", task="caption"),
        ids("diffusion, pictures", decoder="diffusion", task="image"),
        ids("diffusion, captions", decoder="diffusion", task="caption"),
        Unit("correctness", "losses", "gpu_answers:losses", {"objectives": objectives}, 90),
        Unit(
            "correctness",
            "kernels for packed rows",
            "gpu_answers:kernels",
            {"objectives": ("cm3", "masked-diffusion")},
            90,
        ),
        ids("cm3, pictures, bf16", decoder="cm3", task="image", precision="bf16"),
        ids("diffusion, pictures, llada", decoder="diffusion", task="image", sampler="llada"),
        *(
            Unit(
                "correctness",
                f"batches of 1, 3, 16, {decoder}, {precision}",
                "gpu_answers:batches",
                {"decoder": decoder, "precision": precision},
                60,
            )
            for decoder in ("cm3", "diffusion")
            for precision in ("fp32", "bf16")
        ),
        Unit("correctness", "codes of pictures", "gpu_answers:codes", {}, 60),
        ids("cm3, captions, without graphs", decoder="cm3", task="caption", compile="off"),
        ids("cm3, pictures, compiled", decoder="cm3", task="image", compile="on"),
    ]
    return found if not tiny else [found[at] for at in (0, 2, 4, 5, 8)]


def _decoding(tiny: bool) -> list[Unit]:
    def unit(size: str, batch: int, peer: str = "plain") -> Unit:
        options = {"size": size, "batch": batch, "peer": peer}
        return Unit("decoding", f"{size}, batch {batch}, {peer}", "gpu_decoding:speed", options, 120)

    if tiny:
        return [unit("shipped", 2)]
    found = [unit(size, batch) for size in ("shipped", "300M") for batch in (1, 16, 64)]
    return [*found, unit("shipped", 1, "compiled"), unit("300M", 1, "compiled"), unit("1B", 1)]


def _diffusion(tiny: bool) -> list[Unit]:
    batches = (2,) if tiny else (1, 16, 64)
    return [
        Unit("diffusion", f"batch {batch}", "gpu_decoding:passes", {"batch": batch}, 60) for batch in batches
    ]


def _memory(tiny: bool) -> list[Unit]:
    rows = 2 if tiny else 32
    return [
        Unit("memory", f"{packing} against the estimate", "gpu_training:estimate",
             {"packing": packing, "rows": rows}, 60, cuda=packing == "flex")
        for packing in (("dense",) if tiny else ("dense", "flex"))
    ]  # fmt: skip


def _large(tiny: bool) -> list[Unit]:
    def step(size: str, rows: int, packing: str, compiled: bool = False) -> Unit:
        how = {"objective": "cm3", "packing": packing, "rows": rows, "size": size, "compiled": compiled}
        return _step(f"{size}, {packing}", "large", **how)

    if tiny:
        return [step("wider", 2, "dense")]
    return [
        step("125M", 32, "documents", compiled=True), step("125M", 32, "dense", compiled=True),
        step("125M", 32, "flex", compiled=True), step("125M", 32, "xformers"),
        step("1B", 8, "documents", compiled=True), step("1B", 8, "dense", compiled=True),
    ]  # fmt: skip
