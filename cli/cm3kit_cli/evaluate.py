"""`cm3kit eval`: metrics of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, notes_to, progress, warn_of
from cm3kit_cli.tokenizing import Batch, Precision, Search, Tokenizer
from cm3kit_cli.train_all import INCOMPLETE

app = typer.Typer(name="eval", help="Measure a model.")


@app.callback()
def evaluate() -> None:
    """Measure a model."""


@app.command()
def recon(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures, searched recursively.")],
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
    precision: Precision = "auto",
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
            search=search, inception=inception, watch=watch, warn=notes_to(quiet),
        )  # fmt: skip
    width = max(map(len, told))
    return Reply(told, tuple(f"{name:{width}}  {_shown(value)}" for name, value in told.items()))


@app.command("model")
def of_model(
    data: Annotated[Path, typer.Argument(help="A corpus folder, or a folder of token shards.")],
    model: options.Model = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Which pages of a corpus.")] = "rest",
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="At most so many pages, spread over the split.")
    ] = 256,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Draws of masks per page.")] = 4,
    rows: Annotated[int, typer.Option("--batch-size", min=1, help="Packed rows per pass.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what is hidden.")] = 0,
    style: Annotated[
        Literal["page", "plain"] | None,
        typer.Option(
            "--prompt-style", help="How a public model reads a page: as HTML source, or words alone."
        ),
    ] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Score held-out pages: bits per token, byte, code and pixel, the bound of diffusion, <eoss> hit rate."""
    from cm3kit.evaluation.model import evaluate as measure

    warnings: list[str] = []
    told = measure(
        data, model, split=split, limit=limit, rounds=rounds, rows=rows, seed=seed, device=device, style=style,
        warn=warnings.append,
    )  # fmt: skip
    for line in warnings:
        notes_to(quiet)(f"note: {line}")
    width = max(map(len, told))
    lines = tuple(f"{name:{width}}  {_shown(value)}" for name, value in told.items())
    return Reply(told, lines, warnings=tuple(warnings))


@app.command("tasks")
def of_tasks(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...",
            help="entity-disambiguation, entity-linking, summarise, caption, infill, draw, those in left-to-right form"
            " (entity-disambiguation-page, summarise-left), or a YAML file of your own.",
        ),
    ],
    model: options.Model = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Folder of the data, instead of the task's.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many rows, spread over the split.")
    ] = None,
    overrides: options.Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Keep rows and results here; the same command resumes."
        ),
    ] = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="i/n", help="Only the rows i, i+n, i+2n, …, into the same -o.")
    ] = "0/1",
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="DIR",
            help="A finished run on the same rows to compare with: -o/TASK; repeatable.",
        ),
    ] = None,
    decoder: Annotated[str | None, typer.Option(help="The decoder to use: cm3 or diffusion.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of sampling.")] = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Measure a model on CM3's tasks, with baselines beside it and bootstrap intervals."""
    from cm3kit.claims import shard_of
    from cm3kit.evaluation.task_files import load_task
    from cm3kit.evaluation.task_run import RunHow, run_task, table
    from cm3kit.fill.kit import load

    tasks = [load_task(name, overrides or ()) for name in names]
    kit, found, warnings = load(model, device=device), [], list[str]()
    how = RunHow(data, limit, output, seed, {"decoder": decoder}, shard_of(shard), tuple(against or ()))
    for task in tasks:
        with progress(task.name, quiet) as watch:
            found.append(run_task(kit, task, how, watch, warnings.append))
    warn_of(warnings, quiet)
    lines = [line for number, each in enumerate(found) for line in (*([""] if number else []), *table(each))]
    status = INCOMPLETE if any(each.get("missing") for each in found) else 0
    return Reply({"tasks": found}, tuple(lines), warnings=tuple(warnings), status=status)


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
