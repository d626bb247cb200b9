"""`cm3kit tokenize` and `cm3kit detokenize`: pictures to codes on disk, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, notes_to, progress

app = typer.Typer(name="tokenize", help="Turn a folder of pictures into codes.")

Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", envvar="CM3KIT_MODEL", help="A model, or the folder of an image tokenizer."
    ),
]
Batch = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, max=1024, help="Pictures per batch; by default from their size."),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option("--precision", help="Precision of the network; auto is fp32, as others change some codes."),
]
Search = Annotated[
    int,
    typer.Option(
        "--search", min=0, max=64,
        help="Rounds of search for codes with a better reconstruction; each costs about 30 decodings.",
    ),
]  # fmt: skip


@app.callback()
def tokenize() -> None:
    """Turn a folder of pictures into codes."""


@app.command()
def image(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures, searched recursively.")],
    model: Tokenizer = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of codes; unless given, FOLDER-codes.")
    ] = None,
    batch_size: Batch = None,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Pictures in a file.")] = 512,
    precision: Precision = "auto",
    search: Search = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Encode every picture once; existing codes are kept."""
    from cm3kit.fill import tokenizing as pictures

    target = output or folder.parent / f"{folder.resolve().name}-codes"
    with progress("encoding", quiet) as watch:
        told = pictures.tokenize(
            folder, model, target, batch=batch_size, shard=shard_size, device=device, precision=precision,
            search=search, watch=watch, warn=notes_to(quiet),
        )  # fmt: skip
    if not quiet:
        typer.echo(f"{told['encoded']} encoded, {told['kept']} kept, {told['skipped']} left out", err=True)
    return Reply(told, (str(told["folder"]),))


def detokenize(
    source: Annotated[Path, typer.Argument(help="Folder of codes, or one shard.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures.")],
    model: Tokenizer = None,
    batch_size: Batch = None,
    device: options.Device = "auto",
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Decode codes to pictures; existing pictures are kept."""
    from cm3kit.fill import tokenizing as pictures

    with progress("drawing", quiet) as watch:
        told = pictures.detokenize(
            source, model, output, batch=batch_size, device=device, force=force, watch=watch
        )
    if not quiet:
        typer.echo(f"{told['drawn']} drawn, {told['kept']} kept", err=True)
    return Reply(told, (str(told["folder"]),))
