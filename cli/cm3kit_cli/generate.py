"""`cm3kit generate`: pictures, words or whole pages from a prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, one_line, previews, progress, warn_of
from cm3kit_cli.schedules import notes, schedule_of, told

if TYPE_CHECKING:
    from cm3kit.batch.work import Saved
    from cm3kit.fill.prompts import Prompt

Task = Literal["image", "text", "caption", "document", "pair"]


@options.with_decoding
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; for --task caption the file of a picture.")
    ] = None,
    prompt_option: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The same as the argument; - reads standard input.")
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(help="Many prompts: .txt (one per line), .jsonl, .csv or .parquet (prompt, seed, id)."),
    ] = None,
    task: Annotated[Task, typer.Option(help="What to make.")] = "image",
    n: Annotated[int, typer.Option("--num-images", "-n", min=1, max=10_000, help="Results per prompt.")] = 1,
    seed: options.Seed = None,
    model: options.Model = None,
    device: options.Device = "auto",
    *,
    best_of: options.BestOf = 1,
    score: options.Score = "likelihood",
    decoding: options.Decoding,
    output: options.Output = None,
    grid: Annotated[bool, typer.Option("--grid/--no-grid", help="Also a contact sheet.")] = True,
    report: options.Report = False,
    no_prompt_metadata: options.NoPromptMetadata = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:  # fmt: skip
    """Make pictures, words or a page from a prompt.

    Example: cm3kit generate "red apple" -n 4 --seed 1
    """
    if as_json and output == "-":
        raise typer.BadParameter("--json and -o - both write to standard output; use one of them")
    decoding.check()
    given = [each for each in (prompt, prompt_option, prompt_file) if each is not None]
    if len(given) > 1 or not (given or task == "pair"):
        raise typer.BadParameter("give one of PROMPT, --prompt and --prompt-file")
    from cm3kit.batch import commands as jobs
    from cm3kit.batch import work

    settings = decoding.options()
    said: list[str] = []
    prompts = _prompts(given[0] if given else "", task, said.append)
    chosen = 0 if decoding.show_schedule else options.chosen_seed(seed, quiet)
    where = work.Where(output, force, grid, not no_prompt_metadata, decoding.traj, report)
    job = work.GenerateJob(prompts, task, n, chosen, settings, where, best_of, score)
    if decoding.show_schedule:
        return schedule_of(jobs.schedule(model, device, job))
    with progress("generating", quiet) as watch:
        saved = jobs.generate(model, device, job, watch)
    saved = replace(saved, warnings=(*said, *saved.warnings))
    if not quiet and not as_json:
        _tell(saved, task)
    warn_of(saved.warnings, quiet)
    return _reply(saved, chosen)


def _tell(saved: Saved, task: Task) -> None:
    words = enumerate(saved.samples if task == "pair" else ())
    told_words = [f"sample {place}: {one_line(str(sample['text']))}" for place, sample in words]
    for line in (*told_words, *notes(saved)):
        typer.echo(line, err=True)
    previews(saved.paths)


def _prompts(given: str | Path, task: Task, warn: Callable[[str], None]) -> tuple[Prompt, ...]:
    from cm3kit.fill.prompts import Prompt, read_prompts

    if isinstance(given, Path):
        return read_prompts(given, warn)
    if given == "-":
        return (Prompt(sys.stdin.buffer.read() if task == "caption" else sys.stdin.read().strip()),)
    return (Prompt(Path(given) if task == "caption" else given),)


def _reply(saved: Saved, seed: int) -> Reply:
    data = {
        "seed": seed,
        "folder": saved.folder,
        "grid": saved.sheet,
        "overview": saved.overview,
        "samples": saved.samples,
    }
    data |= told(saved)
    more = [each for each in (saved.sheet, saved.overview) if each]
    shown = [*saved.paths, *more, *saved.trajectories]
    return Reply(data, tuple(map(str, shown)), saved.content, saved.run_id, saved.warnings)
