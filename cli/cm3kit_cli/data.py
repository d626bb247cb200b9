"""`cm3kit data`: build a corpus, and describe one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, progress

app = typer.Typer(name="data", help="Build and describe corpora.")
build_app = typer.Typer(name="build", help="Build a corpus.")
app.add_typer(build_app)


@build_app.callback()
def build() -> None:
    """Build a corpus."""


@build_app.command()
def emoji(
    packages: Annotated[
        Path,
        typer.Option("--packages", help="Folder with the unpacked Debian packages (it holds usr/share)."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the corpus.")],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Build the picture dictionary from Noto Color Emoji, Unicode, CLDR and WordNet."""
    from cm3kit import data

    with progress("building", quiet) as watch:
        figures = data.build_emoji(packages, output, watch)
    return Reply(figures, (str(output),))


@app.command()
def stats(
    folder: Annotated[Path, typer.Argument(help="Folder of a corpus.")],
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Describe a corpus: pages, pictures, sizes, splits."""
    from cm3kit import data

    figures = data.stats(folder)
    return Reply(figures, tuple(_table(figures)))


def _table(figures: Mapping[str, Any]) -> list[str]:
    width = max(map(len, figures), default=0)
    return [f"{name:{width}}  {value}" for name, value in figures.items()]
