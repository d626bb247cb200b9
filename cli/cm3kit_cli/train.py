"""`cm3kit train`: the image tokenizer, the text tokenizer, and the decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply

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
    verbose: options.Verbose = False,
) -> Reply:
    """Train the image tokenizer."""
    return _train("vqgan", config, overrides, output, resume, max_steps, device)


@app.command()
def text(
    config: options.Config = None,
    overrides: options.Overrides = None,
    output: RunFolder = None,
    resume: Resume = True,
    max_steps: MaxSteps = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Train the text tokenizer."""
    return _train("text", config, overrides, output, resume, max_steps, device)


@app.command()
def cm3(
    config: options.Config = None,
    overrides: options.Overrides = None,
    output: RunFolder = None,
    resume: Resume = True,
    max_steps: MaxSteps = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Train the decoder with the causally masked objective."""
    return _train("cm3", config, overrides, output, resume, max_steps, device)


def _train(
    kind: Kind,
    config: list[Path] | None,
    overrides: list[str] | None,
    output: Path | None,
    resume: bool,
    max_steps: int | None,
    device: str,
) -> Reply:
    from cm3kit import training

    folder = output or Path("runs", kind)
    done = training.run(kind, config or [], overrides or [], folder, resume, max_steps, device)
    return Reply({"kind": kind, "folder": done}, (str(done),))
