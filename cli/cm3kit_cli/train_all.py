"""`cm3kit train all`: from a folder of pages to a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, notes_to, progress

if TYPE_CHECKING:
    from cm3kit.pipeline import Request

INCOMPLETE = 3  # the exit status for: run the command again to resume


def train_all(
    pages: Annotated[
        str, typer.Argument(metavar="PAGES", help="Folder of pages, WARC, Parquet, …, or prepared data.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to make.")],
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be trained, and stop.")] = False,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="TIME", help="Total time, such as 30min or 2h; 1h by default."),
    ] = None,
    preset: Annotated[
        Literal["auto", "tiny", "small", "base"],
        typer.Option("--preset", help="Family of recipes; auto is the largest that fits the budget."),
    ] = "auto",
    decoder: Annotated[
        Literal["cm3", "diffusion", "both"],
        typer.Option("--decoder", help="Decoder; both trains one set of weights for two."),
    ] = "cm3",
    text: Annotated[Path | None, typer.Option("--text", help="Folder of a finished text tokenizer.")] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Finished image tokenizer: a folder, or weights for model convert."),
    ] = None,
    source: Annotated[
        str, typer.Option("--source", metavar="KIND", help="Kind of PAGES, as in data prepare --from.")
    ] = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="STAGE.A.B=C",
            help="A setting of a stage: data, text, image, pack or decoder; repeatable.",
        ),
    ] = None,
    num_processes: Annotated[
        int, typer.Option("--num-processes", metavar="N", help="1: all stages train in one process.")
    ] = 1,
    clean: Annotated[bool, typer.Option("--clean", help="Remove the runs of the finished model.")] = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply | int:  # fmt: skip
    """Train a text tokenizer, an image tokenizer and a decoder on pages, and put them together.

    The same command resumes where it was stopped.

    Example: cm3kit train all site/ -o my-model --budget 30min
    """
    _check(num_processes, output, decoder)
    from cm3kit.pipeline import Request
    from cm3kit.quantities import read_duration

    seconds = None if budget is None else read_duration(budget)
    asked = Request(
        pages, output, preset, seconds, decoder, text, image, source, tuple(overrides or ()), device
    )
    return _train(asked, plan, clean, quiet)


def _check(num_processes: int, output: Path, decoder: Literal["cm3", "diffusion", "both"]) -> None:
    """Refuse several processes, which stages by themselves can have."""
    if num_processes != 1:
        from cm3kit.pipeline.plan import KINDS

        kind = KINDS[decoder]
        raise typer.BadParameter(
            f"--num-processes {num_processes}: train all trains in one process; leave it out, or train a stage again by"
            f" its recipe: cm3kit train {kind} -c {output}/.runs/recipes/decoder-{kind}.yaml -o RUN --num-processes"
            f" {num_processes}"
        )


def _train(asked: Request, plan: bool, clean: bool, quiet: bool) -> Reply:
    from cm3kit import training
    from cm3kit.pipeline import run as runs
    from cm3kit.pipeline import train_all as make

    def tell(lines: Sequence[str]) -> None:
        if not quiet and not plan:
            typer.echo("\n".join(lines), err=True)

    try:
        with progress("training", quiet) as watch:
            made = make(asked, plan_only=plan, tell=tell, watch=watch, warn=notes_to(quiet))
    except training.Paused as pause:
        typer.echo(f"{pause}; the same command resumes from there", err=True)
        return Reply({"folder": asked.output}, status=INCOMPLETE)
    told = {"folder": made.folder, "plan": made.plan.model_dump(mode="json")}
    if plan:
        return Reply(told, tuple(made.plan.lines()))
    tell(made.lines())
    if clean:
        runs.clean(asked)
    told |= {"took": made.took, "figures": made.figures, "peak": made.peak}
    return Reply(told, (str(asked.output),))
