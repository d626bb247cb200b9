"""`cm3kit infill`: fill the gaps of a page; every other byte stays unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, one_line, progress, warn_of
from cm3kit_cli.schedules import notes, schedule_of, told

if TYPE_CHECKING:
    from cm3kit.batch.work import Saved


Root = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the site: pictures below it are opened, and /… starts there; by default FILE's."
    ),
]
Uncover = Annotated[
    bool, typer.Option("--uncover", help="Remove srcset and <source>s that would hide a drawn picture.")
]
Diff = Annotated[bool, typer.Option("--diff", help="Show what changed, and write a report beside the page.")]
Image = Annotated[
    list[str] | None, typer.Option(help="A picture of the page, by name, to redraw in --box; repeatable.")
]
InPlace = Annotated[bool, typer.Option("--in-place", help="Write the filled page over FILE.")]


@options.with_decoding
def infill(
    file: Annotated[
        str, typer.Argument(help="HTML file with <mask> where something is missing; - is stdin.")
    ],
    select: Annotated[
        list[str] | None,
        typer.Option(help="A CSS selector (p.intro, img@alt) of content to replace; repeatable."),
    ] = None,
    image: Image = None,
    box: Annotated[list[str] | None, typer.Option(metavar="X,Y,W,H", help="The region of --image.")] = None,
    variants: Annotated[int, typer.Option(min=1, max=1000, help="How many filled pages to make.")] = 1,
    diff: Diff = False,
    in_place: InPlace = False,
    root: Root = None,
    uncover: Uncover = False,
    seed: options.Seed = None,
    model: options.Model = None,
    device: options.Device = "auto",
    *,
    decoding: options.Decoding,
    output: options.Output = None,
    report: options.Report = False,
    no_prompt_metadata: options.NoPromptMetadata = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Fill the gaps of a page; every byte outside the gaps stays unchanged.

    Example: cm3kit infill samples/apple.html --variants 3 --diff
    """
    _check(file, image, box, variants, in_place, output, as_json)
    decoding.check()
    from cm3kit.batch import commands as jobs
    from cm3kit.batch import work
    from cm3kit.fill.pages import parse_box, read_page
    from cm3kit.provenance import traces

    page = read_page(
        file, select or (), zip(image or (), map(parse_box, box or ()), strict=True), root, uncover
    )
    settings = decoding.options()
    chosen = 0 if decoding.show_schedule else options.chosen_seed(seed, quiet)
    if in_place:  # which lets the page be written over, and nothing else
        traces.check_free(decoding.traj, variants, force)
    target = str(Path(file).resolve()) if in_place else output
    shown = not no_prompt_metadata
    where = work.Where(target, force or in_place, prompt_metadata=shown, traj=decoding.traj, report=report)
    job = work.InfillJob(page, Path(file).name, variants, chosen, settings, diff, where, in_place)
    if decoding.show_schedule:
        return schedule_of(jobs.schedule(model, device, job))
    with progress("filling", quiet) as watch:
        saved = jobs.infill(model, device, job, watch)
    if not quiet and not as_json:
        for line in (*_notes(saved), *notes(saved)):
            typer.echo(line, err=True)
    warn_of(saved.warnings, quiet)
    return _reply(saved, chosen)


def _check(
    file: str,
    image: list[str] | None,
    box: list[str] | None,
    variants: int,
    in_place: bool,
    output: str | None,
    as_json: bool,
) -> None:
    if as_json and output == "-":
        raise typer.BadParameter("--json and -o - both write to standard output; use one of them")
    if len(image or ()) != len(box or ()):
        raise typer.BadParameter("each --image needs one --box, and each --box one --image")
    if in_place and (output is not None or variants > 1 or file == "-"):
        raise typer.BadParameter(
            "--in-place writes one page over FILE: no -o, no --variants, no standard input"
        )


def _notes(saved: Saved) -> Iterator[str]:
    """One line a gap, then the text diff."""
    for sample in saved.samples:
        for gap in sample["gaps"]:
            yield f"variant {sample['index']} {_note(gap)}"
    if saved.diff:
        yield saved.diff.rstrip("\n")


def _note(gap: dict[str, Any]) -> str:
    text = one_line(str(gap["text"]))
    shown = text if len(text) <= 60 else f"{text[:59]}…"
    ending = "" if gap["ended"] else " (cut at --max-tokens)"
    return f"gap {gap['index']} line {gap['line']} {gap['kind']} {gap['logprob']:.2f}: {shown}{ending}"


def _reply(saved: Saved, seed: int) -> Reply:
    data = {
        "seed": seed,
        "folder": saved.folder,
        "report": saved.report,
        "overview": saved.overview,
        "variants": saved.samples,
    }
    data |= told(saved)
    more = [each for each in (saved.report, saved.overview) if each]
    shown = [*saved.paths, *more, *saved.trajectories]
    return Reply(data, tuple(map(str, shown)), saved.content, saved.run_id, saved.warnings)
