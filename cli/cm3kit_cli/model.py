"""`cm3kit model`: which models there are, and what one is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply

app = typer.Typer(name="model", help="List and describe models.")


@app.command("list")
def list_models(as_json: options.Json = False, verbose: options.Verbose = False) -> Reply:
    """Name the models that are at hand."""
    from cm3kit.pipelines import kit

    names = tuple(kit.available())
    return Reply({"models": names}, names)


@app.command()
def info(
    name: Annotated[
        str | None, typer.Argument(help="Name or folder; unless given, the default model.")
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Describe a model: parts, sizes, hashes, quality."""
    import cm3kit

    described = cm3kit.load(name, device="cpu").info()
    return Reply(described, tuple(_lines(described)))


def _lines(described: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested mappings as indented `name: value` lines, texts of several lines last."""
    long = {name: value for name, value in described.items() if isinstance(value, str) and "\n" in value}
    for name, value in described.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ")
        elif name not in long:
            yield f"{indent}{name}: {value}"
    for value in long.values():
        yield from ("", *value.splitlines())
