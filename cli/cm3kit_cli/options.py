"""The flags that commands share: one spelling for each idea."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

SYNONYMS = {
    "--cfg": "--guidance-scale",
    "--guidance": "--guidance-scale",
    "--temp": "--temperature",
    "--num-samples": "--num-images",
    "--out": "--output",
}
MAX_SEED = 2**63 - 1


def with_synonyms_spelt_out(arguments: list[str]) -> list[str]:
    """The same arguments with accepted synonyms replaced, up to a bare `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    spelt = []
    for argument in arguments[:end]:
        name, equals, value = argument.partition("=")
        spelt.append(SYNONYMS.get(name, name) + equals + value)
    return spelt + arguments[end:]


def finite(value: float | None) -> float | None:
    """Refuse `nan` and `inf`, which Python's `float` reads as numbers."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def chosen_seed(seed: int | None, quiet: bool) -> int:
    """The seed that was given, or a random one, which is printed on standard error."""
    if seed is not None:
        return seed
    import secrets

    drawn = secrets.randbelow(2**31)
    if not quiet:
        typer.echo(f"seed {drawn}", err=True)
    return drawn


Model = Annotated[
    str | None,
    typer.Option("--model", "-m", envvar="CM3KIT_MODEL", help="Name or folder of a model; see `model list`."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, max=MAX_SEED, metavar="INT", help="Base seed; random, and printed, unless given."
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale", "-g", min=0, max=100, callback=finite,
        help="Weight of the prompt (classifier-free guidance); 1 is off.",
    ),
]  # fmt: skip
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", min=0, max=100, callback=finite,
        help="0 always takes the likeliest token.",
    ),
]  # fmt: skip
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", min=0, max=1, callback=finite,
        help="Keep the likeliest tokens that hold this much probability.",
    ),
]  # fmt: skip
TopK = Annotated[
    int | None,
    typer.Option("--top-k", min=0, help="Keep this many likeliest tokens; 0 is all."),
]
Precision = Annotated[
    Literal["fp32", "bf16", "fp16-packed", "int8"] | None,
    typer.Option(
        "--precision", help="Number format of the weights in matrix products; packed ones need a CPU."
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1, help="Most tokens of one text or gap."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o",
        help="File, folder (ends with /), or - for standard output; unless given, a new folder in outputs/.",
    ),
]  # fmt: skip
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show where an unexpected failure came from."),
]
Config = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file of settings; repeatable, later ones win."),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="One setting, over all files; repeatable.")
]
