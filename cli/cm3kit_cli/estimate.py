"""`cm3kit estimate`: memory and time of a training before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply

Kind = Annotated[
    str | None,
    typer.Argument(
        help="What would be trained: vqgan, cm3, mdm, block, hybrid or rl; unless given, told by the recipe."
    ),
]
WORDS = {
    "weights": "weights", "gradients": "gradients", "moments": "AdamW moments", "average": "moving average",
    "activations": "activations", "slack": "holes in memory", "export": "export at the end",
    "process": "process and data", "peak": "peak memory",
}  # fmt: skip


def estimate(
    kind: Kind = None,
    config: options.Config = None,
    overrides: options.Overrides = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Tell parameters, memory and time of a training on this machine's processor, without training."""
    from cm3kit.training.estimate import estimate as foresee

    told = foresee(kind, config or [], overrides or []).as_dict()
    return Reply(told, tuple(_lines(told)))


def _lines(told: Mapping[str, Any]) -> list[str]:
    step = told["seconds_per_step"]
    lines = [f"parameters         {told['parameters']:,} ({told['trained']:,} learn)"]
    lines += [f"{word:18} {told[name] / 1e6:,.0f} MB" for name, word in WORDS.items()]
    lines.append(f"tokens a step      {told['tokens_per_step']:,}, {told['flops_per_step']:.3g} FLOPs")
    lines.append(f"time of a step     {told['seconds_at_best']:.3g} s at best")
    if step is not None:
        lines[-1] += f", {step:.3g} s by trying it out"
    lines.append(f"time in all        {told['seconds'] / 60:,.1f} min")
    return lines
