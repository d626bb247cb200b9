"""`cm3kit model`: list, describe, assemble, convert and publish models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, one_line, without_hashes

app = typer.Typer(name="model", help="List and describe models.")


@app.command("list")
def list_models(as_json: options.Json = False, verbose: options.Verbose = False) -> Reply:
    """List the models that ship, and models and runs below the current folder."""
    from cm3kit.fill import finding

    names, found = tuple(finding.available()), finding.local(Path())
    data = {"models": names, "local": [dataclasses.asdict(each) for each in found]}
    return Reply(data, (*names, *(one_line(each.line) for each in found)))


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
    from cm3kit.fill.formats import formats

    kit = cm3kit.load(name, device="cpu")
    described = {**kit.info(), "precision": formats(kit)}
    return Reply(described, tuple(_lines(described if verbose else without_hashes(described))))


@app.command()
def assemble(
    text: Annotated[Path, typer.Option(help="Folder of a trained text tokenizer.")],
    decoder: Annotated[Path, typer.Option(help="Folder of a trained decoder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to make.")],
    image: Annotated[
        Path | None,
        typer.Option(help="Folder of a trained image tokenizer; a model of words alone has none."),
    ] = None,
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
    from cm3kit.fill import folder
    from cm3kit.fill.defaults import Defaults
    from cm3kit.training.run import recipe_path

    settings = resolve(Defaults, [read_yaml(recipe_path(defaults, defaults=True))] if defaults else [])
    made = folder.assemble(output, text, image, decoder, settings, folder.read_card(card), diffusion)
    return Reply({"folder": made}, (str(made),))


@app.command()
def average(
    first: Annotated[Path, typer.Argument(help="Folder of a decoder, whose use is that of the average.")],
    second: Annotated[Path, typer.Argument(help="Folder of one of the same shape, as of one trained on.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the decoder to make.")],
    share: Annotated[
        float, typer.Option("--share", min=0, max=1, help="Share of the second one's weights.")
    ] = 0.5,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Average the weights of two decoders, to keep of both what they know."""
    from cm3kit.fill.average import average as mix

    made = mix(first, second, share, output)
    return Reply({"folder": made}, (str(made),))


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="Weights: .ckpt, .pt, .msgpack, .safetensors, or a folder that holds them.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the converted tokenizer.")],
    settings: Annotated[
        Path | None,
        typer.Option("--settings", help="YAML of the weights; unless given, the one beside them."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            help="taming, ibq, llamagen, flax, diffusers; unless given, detected from the weights.",
        ),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", min=8, help="Side of its pictures in pixels.")
    ] = None,
    pixel_range: Annotated[
        Literal["signed", "unit"] | None,
        typer.Option(
            "--pixel-range", help="Range of the network's input: signed is [-1, 1], unit is [0, 1]."
        ),
    ] = None,
    quantizer: Annotated[
        str | None, typer.Option("--quantizer", help="Quantizer; by default the family's.")
    ] = None,
    fit: Annotated[
        Literal["pad", "crop", "stretch"] | None,
        typer.Option("--fit", help="How pictures become square; crop unless given."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Write half-precision weights.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Convert an image tokenizer of taming-transformers, Chameleon, LlamaGen, … to a cm3kit folder."""
    from cm3kit.interop.conversion import convert as bring

    wanted = {"resolution": resolution, "pixel_range": pixel_range, "quantizer": quantizer, "fit": fit}
    changes = {name: value for name, value in wanted.items() if value is not None}
    made = bring(source, output, settings=settings, family=family, half=half, changes=changes)
    for note in made["notes"]:
        typer.echo(f"note: {note}", err=True)
    return Reply(made, (str(made["folder"]),), warnings=tuple(made["notes"]))


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of LLaDA, Dream, DiffuCoder, Chameleon or Anole as it was downloaded; its code is not run."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to make.")],
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Convert a public model of a known family to a cm3kit folder."""
    from cm3kit.interop.importing import import_model

    made = import_model(source, output)
    return Reply({"folder": made}, (str(made),))


@app.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    model: options.Model = None,
    multiple: Annotated[
        int, typer.Option("--pad-to", min=1, help="Pad the vocabulary to a multiple of this.")
    ] = 64,
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option("--dtype", help="Number format of the weights.")
    ] = "bf16",
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Write the causal decoder of a model for an inference server, such as vLLM."""
    from cm3kit.interop.export import export_decoder

    made = export_decoder(model, output, multiple=multiple, dtype=dtype)
    return Reply({"folder": made}, (str(made),))


@app.command()
def push(
    repo: Annotated[str, typer.Argument(help="owner/name on the hub; it is made if it is not there.")],
    model: options.Model = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to upload to, instead of main.")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Upload a model folder to the Hugging Face hub, where `-m hf:owner/name` finds it."""
    from cm3kit.fill.finding import find
    from cm3kit.interop import hub

    address = hub.push(find(model), repo, private=private, revision=revision)
    return Reply({"address": address, "model": f"hf:{repo}"}, (address,))


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
