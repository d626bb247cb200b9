"""`cm3kit model`: which models there are, and what one is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
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


@app.command()
def assemble(
    text: Annotated[Path, typer.Option(help="Folder of a trained text tokenizer.")],
    image: Annotated[Path, typer.Option(help="Folder of a trained image tokenizer.")],
    decoder: Annotated[Path, typer.Option(help="Folder of a trained decoder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to make.")],
    defaults: Annotated[
        Path | None,
        typer.Option(
            help="YAML with the model's defaults: window, preset, decoders, image, text, diffusion."
        ),
    ] = None,
    diffusion: Annotated[
        Path | None,
        typer.Option(
            help="Folder of another decoder, that writes in place; unless given, --decoder does both."
        ),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="Markdown file that becomes the model's README.md.")
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Put trained parts together as one model folder."""
    from cm3kit.config import read_yaml, resolve
    from cm3kit.pipelines import folder
    from cm3kit.training.run import recipe_path

    settings = resolve(folder.Defaults, [read_yaml(recipe_path(defaults, defaults=True))] if defaults else [])
    made = folder.assemble(output, text, image, decoder, settings, folder.read_card(card), diffusion)
    return Reply({"folder": made}, (str(made),))


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
