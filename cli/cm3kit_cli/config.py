"""`cm3kit config`: a recipe with all its settings resolved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply

app = typer.Typer(name="config", help="Show the settings of a training.")


@app.callback()
def config() -> None:
    """Show the settings of a training."""


@app.command("show")
def show(
    recipes: Annotated[
        list[Path],
        typer.Argument(metavar="RECIPE...", help="Files, or names of recipes that ship; later ones win."),
    ],
    overrides: options.Overrides = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", help="What is trained, if the recipe does not say."),
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Print every setting as YAML with the source of its value: a recipe, --set, or the default."""
    from cm3kit.training.run import traced

    found = traced(recipes, overrides or [], kind)
    data = {name: {"value": value, "origin": origin} for name, (value, origin) in found.values.items()}
    return Reply(data, tuple(found.as_yaml().splitlines()))
