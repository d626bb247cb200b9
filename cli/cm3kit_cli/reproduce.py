"""`cm3kit info` and `cm3kit reproduce`: show how a file was made, and make it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, one_line, progress, without_hashes


def info(
    file: Annotated[Path, typer.Argument(help="A picture, page or text that cm3kit wrote.")],
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Show how a file was made: prompt, seed, settings, model, versions.

    Example: cm3kit info apple.png
    """
    from cm3kit.provenance.recipes import read_recipe

    told = read_recipe(file).told()
    return Reply(told, tuple(_lines(told if verbose else without_hashes(told))))


def reproduce(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="What cm3kit wrote, or the folder of a run.")
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Compare with FILE and write nothing; status 1 on a difference.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="A folder (ends with /), or a name for a single FILE; unless given, in outputs/.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Use this model; unless given, the one that the recipe names."),
    ] = None,
    trust_model: Annotated[
        bool, typer.Option("--trust-model", help="Load a model that a recipe names and that does not ship.")
    ] = False,
    device: options.Device = "auto",
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Make files again from the recipes stored in them.

    Example: cm3kit reproduce apple.png --check
    """
    if check and output is not None:
        raise typer.BadParameter("--check writes nothing; leave -o out")
    from cm3kit.provenance import reproducing

    paths = reproducing.expand(files)
    models = reproducing.ModelCache(model, device, trust_model)
    with progress("reproducing", quiet) as watch:
        if not check:
            written = reproducing.write(models, paths, output, force, watch)
            return Reply({"paths": written}, tuple(map(str, written)))
        verdicts = list(models.check(paths, watch))
    wrong = sum(not each.equal for each in verdicts)
    data = {
        "files": [{"path": each.path, "verdict": each.verdict, "reasons": each.reasons} for each in verdicts],
        "equal": len(verdicts) - wrong,
        "different": wrong,
    }
    return Reply(data, tuple(one_line(each.line) for each in verdicts), status=1 if wrong else 0)


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    """One line each, with long values cut."""
    for key, value in told.items():
        if isinstance(value, Mapping):
            for name, each in value.items():
                yield one_line(f"{key} {name}: {str(each)[:500]}")
        elif value is not None:
            yield one_line(f"{key}: {value}"[:2000])
