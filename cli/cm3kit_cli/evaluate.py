"""`cm3kit eval`: figures about models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, progress
from cm3kit_cli.tokenizing import Batch, Precision, Search, Tokenizer

app = typer.Typer(name="eval", help="Measure a model.")


@app.callback()
def evaluate() -> None:
    """Measure a model."""


@app.command()
def recon(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures, searched to the bottom.")],
    model: Tokenizer = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many pictures, spread over the folder.")
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(
            help="Weights of FID's Inception, a file of pytorch-fid; adds rfid over 2,049 or more pictures."
        ),
    ] = None,
    batch_size: Batch = None,
    precision: Precision = "fp32",
    search: Search = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Reconstruct pictures through their codes: PSNR, SSIM, and how the codes are used."""
    from cm3kit.evaluation.reconstruction import reconstruction

    with progress("reconstructing", quiet) as watch:
        told = reconstruction(
            folder, model, batch=batch_size, limit=limit, device=device, precision=precision,
            search=search, inception=inception, watch=watch, warn=lambda line: typer.echo(line, err=True),
        )  # fmt: skip
    width = max(map(len, told))
    return Reply(told, tuple(f"{name:{width}}  {_shown(value)}" for name, value in told.items()))


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
