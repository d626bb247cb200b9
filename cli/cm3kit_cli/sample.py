"""`cm3kit sample`: sample many rows into a folder, resumably."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, notes_to, one_line, progress, warn_of

app = typer.Typer(name="sample", help="Sample many rows into a folder, resumably.")

INCOMPLETE = 3
Task = Literal["image", "text", "caption", "document", "pair", "infill"]
Folder = Annotated[Path, typer.Argument(help="Folder of sample run.")]


Prompts = Annotated[Path, typer.Argument(help="Rows: .txt (one prompt per line), .jsonl, .csv or .parquet.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Output folder; a run that was begun there is resumed.")
]
Number = Annotated[int, typer.Option("--num-images", "-n", min=1, max=10_000, help="Outputs per row.")]
Shard = Annotated[str, typer.Option("--shard", metavar="i/n", help="Only the rows i, i+n, i+2n, …")]
Processes = Annotated[
    int, typer.Option("--num-processes", min=1, max=256, help="Processes, each with its share of the rows.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Resume the folder, or refuse one that was begun.")
]
RetryErrors = Annotated[bool, typer.Option("--retry-errors", help="Retry rows that failed.")]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit", min=0, callback=options.finite, help="Seconds after which no further row is started."
    ),
]
NoPromptMetadata = Annotated[
    bool,
    typer.Option("--no-prompt-metadata", help="Leave prompt and settings out of the files and the manifest."),
]


@app.command()
@options.with_decoding
def run(
    prompts: Prompts,
    output: Output,
    task: Annotated[Task, typer.Option(help="Task of rows that name none.")] = "image",
    n: Number = 1,
    seed: options.Seed = None,
    model: options.Model = None,
    device: options.Device = "auto",
    *,
    decoding: options.Decoding,
    shard: Shard = "0/1",
    num_processes: Processes = 1,
    best_of: options.BestOf = 1,
    score: options.Score = "likelihood",
    resume: Resume = True,
    retry_errors: RetryErrors = False,
    time_limit: TimeLimit = None,
    no_prompt_metadata: NoPromptMetadata = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Sample every row of a file. The same command resumes where it was stopped.

    Example: cm3kit sample run prompts.jsonl -o outputs/night/ --seed 1
    """
    decoding.check()
    if decoding.show_schedule or decoding.traj is not None:
        raise typer.BadParameter(
            "--show-schedule and --traj are flags of generate and infill; leave them out"
        )
    import os

    from cm3kit.batch import processes
    from cm3kit.batch import run as sampling
    from cm3kit.batch.job import How, SampleJob
    from cm3kit.claims import shard_of

    mine, device = processes.launched(shard_of(shard), device, os.environ)
    job = SampleJob(
        prompts, output, model, device, task, n, seed, decoding.options(), best_of, score,
        not no_prompt_metadata,
    )  # fmt: skip
    how = How(mine, resume, retry_errors, time_limit)

    warn = notes_to(quiet)
    with progress("sampling", quiet) as watch:
        if num_processes > 1:
            found = processes.run_processes(job, how, num_processes, watch, warn)
        else:
            found = sampling.run(job, how, watch, warn)
    warn_of(found["warnings"], quiet)
    warn(_counts(found))
    return Reply(found, (str(output),), warnings=tuple(found["warnings"]), status=_status(found))


@app.command()
def status(
    folder: Folder,
    verify: Annotated[bool, typer.Option("--verify", help="Also verify the hash of every file.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Show the state of a folder: done, failed, missing, and active shards. Status 3 if incomplete."""
    from cm3kit.batch.manage import status as look

    found = look(folder, verify)
    lines = [_counts(found), *(f"{count} x {code}" for code, count in found["failures"].items())]
    lines += [f"at work: {each}" for each in found["at_work"]]
    lines += [f"damaged: {one_line(each)}" for each in found.get("damaged", ())]
    damaged = 1 if found.get("damaged") else 0
    return Reply(found, tuple(lines), status=damaged or _status(found))


@app.command()
def merge(
    folder: Folder,
    others: Annotated[list[Path] | None, typer.Argument(help="Folders of the same job, from other machines.")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:  # fmt: skip
    """Merge the manifests of all shards, and copy outputs from other folders."""
    from cm3kit.batch.manage import merge as join

    found = join(folder, tuple(others or ()), lambda line: typer.echo(line, err=True))
    typer.echo(_counts(found), err=True)
    return Reply(found, (str(folder),), status=_status(found))


@app.command()
def export(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The new folder.")],
    form: Annotated[
        Literal["folder", "webdataset", "parquet"], typer.Option("--to", help="What to write.")
    ] = "folder",
    per_shard: Annotated[int, typer.Option("--per-shard", min=1, help="Outputs of one tar or Parquet file.")] = 1000,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:  # fmt: skip
    """Export finished outputs as plain files, WebDataset tars or Parquet."""
    from cm3kit.batch.export import export as write

    found = write(folder, output, form, per_shard)
    return Reply(found, (str(output),))


def _counts(found: Mapping[str, Any]) -> str:
    told = f"{found['done']} of {found['outputs']} outputs are there"
    told += "".join(f", {found[name]} {name}" for name in ("failed", "missing") if found[name])
    return told + (f", {found['warned']} with warnings (see the manifest)" if found["warned"] else "")


def _status(found: Mapping[str, Any]) -> int:
    return INCOMPLETE if found["failed"] or found["missing"] else 0
