"""`cm3kit estimate`: memory and time of a training before it starts, and memory of using a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply

Kind = Annotated[
    str | None,
    typer.Argument(
        help="What would be trained: vqgan, cm3, mdm, block, hybrid or rl; by default read from the recipe."
    ),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option("--device-memory", metavar="SIZE", help="Memory of the GPU it would run on, such as 24GB."),
]
DeviceTflops = Annotated[
    float | None,
    typer.Option(
        "--device-tflops", min=0.1, metavar="N", help="Peak dense bf16 TFLOPS of that GPU, by its data sheet."
    ),
]
WORDS = {
    "weights": "weights", "gradients": "gradients", "moments": "AdamW moments", "average": "moving average",
    "activations": "activations", "slack": "holes in memory", "export": "export at the end",
    "process": "process and data", "peak": "peak memory",
}  # fmt: skip


USES = {
    "weights": "weights", "image": "image tokenizer", "cache": "keys and values", "total": "total",
}  # fmt: skip
Used = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Estimate the memory for using this model instead; its weights need not be present.",
    ),
]


def estimate(
    kind: Kind = None,
    model: Used = None,
    config: options.Config = None,
    overrides: options.Overrides = None,
    device_memory: DeviceMemory = None,
    device_tflops: DeviceTflops = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Estimate parameters, memory and time of a training, on this machine's processor or on another device.

    Example: cm3kit estimate -c base-cm3 --device-memory 24GB
    """
    if model is not None:
        return _of_use(model, [*([kind] if kind else []), *(config or []), *(overrides or [])])
    from cm3kit.quantities import read_memory
    from cm3kit.training.estimates import estimate as foresee
    from cm3kit.training.other_device import fit

    size = None if device_memory is None else read_memory(device_memory)
    elsewhere = size is not None or device_tflops is not None
    found, steps = foresee(kind, config or [], overrides or [], elsewhere)
    told = found.as_dict()
    if not elsewhere:
        return Reply(told, tuple(_lines(told)))
    there = fit(found, steps, size, device_tflops)
    return Reply({**told, "device": there.as_dict()}, (*_lines(told)[:1], *there.lines(size, device_tflops)))


def _of_use(model: str, others: Sequence[object]) -> Reply:
    from cm3kit.fill.needs import needs
    from cm3kit_tokenizers.errors import ConfigError

    if others:
        raise ConfigError(
            f"--model asks for what using {model} takes, and {others[0]} is of a training; leave one out.",
            code="bad_value",
        )
    told = needs(model).as_dict()
    rows = f"{told['streams']} rows of {told['window']:,} ids"
    lines = [f"parameters         {told['parameters']:,} ({told['dtype']})"]
    lines += [f"{word:18} {told[name] / 1e6:,.0f} MB" for name, word in USES.items()]
    lines[3] += f" ({rows})" if told["cache"] else ""
    return Reply(told, tuple(lines))


def _lines(told: Mapping[str, Any]) -> list[str]:
    from cm3kit.quantities import duration

    step = told["seconds_per_step"]
    lines = [f"parameters         {told['parameters']:,} ({told['trained']:,} trainable)"]
    lines += [f"{word:18} {told[name] / 1e6:,.0f} MB" for name, word in WORDS.items()]
    lines.append(f"tokens per step    {told['tokens_per_step']:,}, {told['flops_per_step']:.3g} FLOPs")
    lines.append(f"time per step      {told['seconds_at_best']:.3g} s at best")
    if step is not None:
        lines[-1] += f", {step:.3g} s measured"
    lines.append(f"total time         {duration(told['seconds'])}")
    return lines
