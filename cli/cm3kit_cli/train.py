"""`cm3kit train`: the image tokenizer, the text tokenizer, and the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, progress

Kind = Literal["vqgan", "text", "cm3"]

app = typer.Typer(name="train", help="Train a tokenizer or a decoder.")

RunFolder = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of the run; unless given, runs/ and the kind.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on from the newest whole checkpoint of the folder.")
]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", min=1, help="Stop after this many steps.")]


@app.command()
def vqgan(
    config: options.Config = None,
    overrides: options.Overrides = None,
    output: RunFolder = None,
    resume: Resume = True,
    max_steps: MaxSteps = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Train the image tokenizer."""
    return _train("vqgan", config, overrides, output, resume, max_steps, device, quiet)


@app.command()
def text(
    config: options.Config = None,
    overrides: options.Overrides = None,
    output: RunFolder = None,
    resume: Resume = True,
    max_steps: MaxSteps = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Train the text tokenizer."""
    return _train("text", config, overrides, output, resume, max_steps, device, quiet)


@app.command()
def cm3(
    config: options.Config = None,
    overrides: options.Overrides = None,
    output: RunFolder = None,
    resume: Resume = True,
    max_steps: MaxSteps = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Train the decoder with the causally masked objective."""
    return _train("cm3", config, overrides, output, resume, max_steps, device, quiet)


def _train(
    kind: Kind,
    config: list[Path] | None,
    overrides: list[str] | None,
    output: Path | None,
    resume: bool,
    max_steps: int | None,
    device: str,
    quiet: bool,
) -> Reply:
    from cm3kit import training

    folder = output or Path("runs", kind)
    with progress(f"training {kind}", quiet) as watch:
        done = training.run(
            kind, config or [], overrides or [], folder, resume=resume, max_steps=max_steps, device=device,
            report=lambda step, total, figures: watch(step, total, note(figures)),
            warn=lambda line: typer.echo(line, err=True),
        )  # fmt: skip
    return Reply({"kind": kind, "folder": done}, (str(done),))


def note(figures: Mapping[str, float]) -> str:
    """Figures of a step on one line, such as `loss 1.25  lr 0.0003`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
