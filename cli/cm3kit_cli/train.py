"""`cm3kit train`: the tokenizers, and decoders by each objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, notes_to, progress
from cm3kit_cli.train_all import INCOMPLETE, train_all

app = typer.Typer(name="train", help="Train a tokenizer or a decoder.")

KINDS = {
    "vqgan": "Train the image tokenizer.",
    "text": "Train the text tokenizer.",
    "cm3": "Train a decoder with the causally masked objective.",
    "mdm": "Train a decoder by masked diffusion; --from converts a causal one.",
    "block": "Train a decoder by block diffusion; --from converts a causal one.",
    "hybrid": "Train one decoder by causal masking and by masked diffusion.",
}

RunFolder = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of the run; unless given, runs/ and the kind.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Resume from the newest valid checkpoint of the folder.")
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="A model, by name or folder, to start from: its tokenizers and weights.",
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="NAME",
        help="The objective, such as prefix-lm (docs/training.md); unless set, the command's.",
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="MODEL",
        help="A language model of transformers, by folder or hub id, to start from: its text tokenizer and weights.",
    ),
]
NumProcesses = Annotated[
    int,
    typer.Option(
        "--num-processes", min=1, metavar="N",
        help="Train with this many processes, each with a GPU or a share of the CPU; the batch size stays.",
    ),
]  # fmt: skip
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts", metavar="FILE", help="Prompts, one per line or row, or a folder of pages with gaps."
    ),
]
Estimator = Annotated[
    str | None,
    typer.Option(
        "--estimator", metavar="NAME", help="Likelihood estimator: one-pass, coupled, trajectory or causal."
    ),
]
Rewards = Annotated[
    list[str] | None,
    typer.Option("--reward", metavar="NAME[=WEIGHT]", help="Reward, such as edit; repeatable."),
]
RewardCommand = Annotated[
    str | None,
    typer.Option(
        "--reward-command",
        metavar="COMMAND",
        help="A program that reads answers as JSON lines and prints their rewards.",
    ),
]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", min=1, help="Stop after this many steps.")]


def _add(kind: str, summary: str) -> None:
    @app.command(kind, help=summary)
    def command(
        config: options.Config = None,
        overrides: options.Overrides = None,
        output: RunFolder = None,
        start: From = None,
        backbone: Backbone = None,
        objective: Objective = None,
        resume: Resume = True,
        max_steps: MaxSteps = None,
        num_processes: NumProcesses = 1,
        device: options.Device = "auto",
        as_json: options.Json = False,
        quiet: options.Quiet = False,
        verbose: options.Verbose = False,
    ) -> Reply | int:
        chosen = [
            *_from(kind, start),
            *_public(kind, backbone),
            *_asking(kind, objective),
            *(overrides or []),
        ]
        if num_processes > 1:
            flags = _flags(as_json, quiet, verbose, max_steps, resume, device)
            return _launch(kind, config or [], chosen, output, flags, num_processes)
        return _train(kind, config or [], chosen, output, resume, max_steps, device, quiet)


app.command("all")(train_all)
for _kind, _summary in KINDS.items():
    _add(_kind, _summary)


@app.command("rl", help="Train a model's decoder further by rewards of its answers (reinforcement learning).")
def rl(
    config: options.Config = None,
    overrides: options.Overrides = None,
    output: RunFolder = None,
    start: From = None,
    prompts: Prompts = None,
    estimator: Estimator = None,
    reward: Rewards = None,
    reward_command: RewardCommand = None,
    resume: Resume = True,
    max_steps: MaxSteps = None,
    num_processes: NumProcesses = 1,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply | int:
    """Train a decoder by its rewards."""
    named = {"model": start, "prompts": prompts, "estimator.name": estimator}
    chosen = [f"{name}={value}" for name, value in named.items() if value is not None]
    chosen += [*_rewarded(reward or [], reward_command), *(overrides or [])]
    if num_processes > 1:
        flags = _flags(as_json, quiet, verbose, max_steps, resume, device)
        return _launch("rl", config or [], chosen, output, flags, num_processes)
    return _train("rl", config or [], chosen, output, resume, max_steps, device, quiet)


def _rewarded(names: Sequence[str], command: str | None) -> list[str]:
    """Overrides for the rewards; empty if none is given."""
    import json

    found: list[dict[str, object]] = []
    for each in names:
        name, sign, weight = each.partition("=")
        try:
            found.append({"name": name, "weight": float(weight)} if sign else {"name": name})
        except ValueError:
            raise typer.BadParameter(f"--reward {each!r} is not NAME or NAME=WEIGHT.") from None
    if command is not None:
        found.append({"name": "command", "command": command})
    return [f"rewards={json.dumps(found)}"] if found else []


def _flags(
    as_json: bool, quiet: bool, verbose: bool, max_steps: int | None, resume: bool, device: str
) -> list[str]:
    """The flags of a command, for one that is started in several processes."""
    flags = [*(["--json"] if as_json else []), *(["-q"] if quiet else []), *(["-v"] if verbose else [])]
    flags += ["--max-steps", str(max_steps)] if max_steps is not None else []
    return [*flags, "--resume" if resume else "--no-resume", "--device", device]


def _from(kind: str, start: str | None) -> list[str]:
    """Overrides that make a model the start of training."""
    if start is None:
        return []
    if kind == "text":
        raise typer.BadParameter("the text tokenizer is trained from scratch; leave --from out.")
    from cm3kit.fill.finding import find

    folder = find(start)
    if kind == "vqgan":
        return [f"start_from={folder / 'image'}"]
    from cm3kit.interop.importing import start_from

    return start_from(kind, folder)


def _public(kind: str, backbone: str | None) -> list[str]:
    """Overrides that make a public decoder the start of training."""
    if backbone is None:
        return []
    if kind in ("text", "vqgan"):
        raise typer.BadParameter(f"--backbone is for decoders, and {kind} trains a tokenizer; leave it out.")
    return [f"warm.source={backbone}"]


def _asking(kind: str, objective: str | None) -> list[str]:
    """Overrides that choose the objective."""
    if objective is None:
        return []
    if kind in ("text", "vqgan"):
        raise typer.BadParameter(f"--objective is for decoders, and {kind} trains a tokenizer; leave it out.")
    return [f"objective.name={objective}"]


def _launch(
    kind: str, config: Sequence[Path], overrides: Sequence[str], output: Path | None, flags: Sequence[str],
    processes: int,
) -> int:  # fmt: skip
    """The same command in several processes, and its exit status."""
    import sys

    from cm3kit.training.launch import launch

    if kind == "text":
        raise typer.BadParameter("the text tokenizer is trained by one process; leave --num-processes out.")
    command = [sys.executable, "-m", "cm3kit_cli", "train", kind, "-o", str(output or Path("runs", kind))]
    command += [each for path in config for each in ("-c", str(path))]
    command += [each for override in overrides for each in ("--set", override)]
    return launch([*command, *flags], processes)


def _train(
    kind: str,
    config: Sequence[Path],
    overrides: Sequence[str],
    output: Path | None,
    resume: bool,
    max_steps: int | None,
    device: str,
    quiet: bool,
) -> Reply | int:
    from cm3kit import training

    folder, main = output or Path("runs", kind), training.rank() == 0
    try:
        with progress(f"training {kind}", quiet or not main) as watch:
            done = training.run(
                kind, config, overrides, folder, resume=resume, max_steps=max_steps, device=device,
                report=lambda step, total, figures: watch(step, total, note(figures)),
                warn=notes_to(quiet),
            )  # fmt: skip
    except training.Paused as pause:
        if main:
            typer.echo(f"{pause}; the same command resumes from there", err=True)
        return Reply({"kind": kind, "folder": folder}, status=INCOMPLETE) if main else INCOMPLETE
    return Reply({"kind": kind, "folder": done}, (str(done),)) if main else 0


def note(figures: Mapping[str, float]) -> str:
    """Metrics of a step on one line, such as `loss 1.25  time left 24 min`."""
    from cm3kit.training.speed import told

    return "  ".join(" ".join(told(name, value)) for name, value in figures.items())
