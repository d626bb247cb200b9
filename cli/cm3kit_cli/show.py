"""`cm3kit show`: views of files that cm3kit wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, one_line, progress, warn_of

app = typer.Typer(name="show", help="Show outputs, and how they were written.")


@app.callback()
def show() -> None:
    """Show outputs, and how they were written."""


@app.command()
def traj(
    file: Annotated[Path, typer.Argument(help="A trajectory, as --traj writes it.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="A name in .html (a player), .gif or .webp, a folder (ends with /), or - for the page on standard"
            " output; unless given, FILE's name in .html.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Model that draws the pictures; by default the one that wrote them."
        ),
    ] = None,
    scale: Annotated[
        float, typer.Option(min=0.25, max=32, callback=options.finite, help="Scale factor of pictures.")
    ] = 6,
    fps: Annotated[float, typer.Option(min=0.1, max=50, callback=options.finite, help="Steps a second.")] = 8,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Play how a canvas was written: picture, text and AR-ness, pass by pass.

    Example: cm3kit show traj apple.traj.safetensors -o apple.gif
    """  # fmt: skip
    if as_json and output == "-":
        raise typer.BadParameter("--json and -o - both write to standard output; use one of them")
    from cm3kit.evaluation.arness import stats
    from cm3kit.provenance.trajectories import load_trajectory
    from cm3kit.viewing import showing

    record = load_trajectory(file)
    path = showing.target(file, output, force)
    kind = showing.SUFFIXES[path.suffix.lower()] if path else showing.HTML
    figures = stats(record.trajectory)
    with progress("drawing", quiet) as watch:
        made = showing.animate(record, kind, figures, showing.Look(scale, fps), model, watch)
    if not quiet and not as_json:
        for line in _notes(figures):
            typer.echo(one_line(line), err=True)
    warn_of(made.warnings, quiet)
    if path is None:
        return Reply({}, content=made.content)
    showing.write(path, made.content, force)
    data = {"path": path, "frames": made.frames, "steps": made.steps, "model": record.model, "stats": figures}
    return Reply(data, (str(path),), warnings=made.warnings)


@app.command()
def preview(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Pictures.")],
    columns: Annotated[
        int | None, typer.Option(min=4, max=1000, help="Width in characters; unless given, the terminal's.")
    ] = None,
    verbose: options.Verbose = False,
) -> Reply:
    """Print pictures in coloured half blocks.

    Example: cm3kit show preview apple.png
    """
    import shutil

    from cm3kit.viewing.halfblocks import strip

    return Reply({}, tuple(strip(files, columns or shutil.get_terminal_size().columns).split("\n")))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="A file; unless given, report.html in the folder.")
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Show a run in one self-contained page: pictures, pages in frames, texts, settings.

    Example: cm3kit show report outputs/generate-20260304T050607-a1b2c3
    """
    from cm3kit.viewing import report as reports
    from cm3kit.viewing import showing

    path = showing.report_target(folder, output, force)
    with progress("reading", quiet) as watch:
        built = reports.build(folder, watch)
    showing.write(path, built.content, force)
    warn_of(built.warnings, quiet)
    data = {"path": path, "results": built.entries, "bytes": len(built.content)}
    return Reply(data, (str(path),), warnings=built.warnings)


def _notes(figures: Mapping[str, Any]) -> Iterator[str]:
    """A summary of the figures that `--json` gives in full."""
    speed = f"{figures['parallelism']:.2f} a pass" if figures["parallelism"] is not None else "none"
    yield f"{figures['written']} of {figures['slots']} positions in {figures['passes']} passes, {speed}"
    for kind, each in figures["arness"].items():
        shares = (
            f"{name}@{k} {value:.2f}"
            for name in ("local", "global")
            for k, value in each[f"{name}_at"].items()
            if value is not None
        )
        yield f"AR-ness of {kind} positions: {' '.join(shares)}"
