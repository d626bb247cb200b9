"""The flags that commands share, with one spelling each."""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cm3kit.decode_options import Choice, GenerateOptions, Option, own, table
from cm3kit.renamed import warn_renamed

SYNONYMS = {
    "--cfg": "--guidance-scale",
    "--guidance": "--guidance-scale",
    "--temp": "--temperature",
    "--num-samples": "--num-images",
    "--out": "--output",
    "--editor": "--remasker",
}
# Flags that were called otherwise; the old ones work for one release.
RENAMED = {"--quota": "--schedule", "--modifier": "--remasker"}
MAX_SEED = 2**63 - 1


def with_synonyms_spelt_out(arguments: list[str]) -> list[str]:
    """The same arguments with accepted synonyms replaced, up to a bare `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    spelt = []
    for argument in arguments[:end]:
        name, equals, value = argument.partition("=")
        if name in RENAMED:
            warn_renamed(name, RENAMED[name])
        spelt.append(SYNONYMS.get(name, RENAMED.get(name, name)) + equals + value)
    return spelt + arguments[end:]


def without_plugins(arguments: list[str]) -> tuple[list[str], list[Path]]:
    """The arguments without `--plugin FILE`, which may stand before or behind the command, and the files."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept: list[str] = []
    files: list[Path] = []
    rest = iter(arguments[:end])
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != "--plugin":
            kept.append(argument)
        elif equals or (value := next(rest, "")):
            files.append(Path(value))
        else:
            kept.append(argument)  # which is refused for want of a value
    return kept + arguments[end:], files


def finite(value: float | None) -> float | None:
    """Refuse `nan` and `inf`, which Python's `float` reads as numbers."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def chosen_seed(seed: int | None, quiet: bool) -> int:
    """The seed that was given, or a random one, which is printed on standard error."""
    if seed is not None:
        return seed
    import secrets

    drawn = secrets.randbelow(2**31)
    if not quiet:
        typer.echo(f"seed {drawn}", err=True)
    return drawn


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar="CM3KIT_MODEL",
        help="Name or folder of a model, or hf:owner/name; see `model list`.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, max=MAX_SEED, metavar="INT", help="Base seed; random, and printed, unless given."
    ),
]
ShowSchedule = Annotated[
    bool,
    typer.Option("--show-schedule", help="Print how many positions each pass will write, and stop."),
]
Traj = Annotated[
    Path | None,
    typer.Option("--traj", metavar="FILE", help="Also write the trajectory; see `show traj`."),
]
BestOf = Annotated[
    int, typer.Option("--best-of", min=1, max=1000, help="Candidates for each output; the best is kept.")
]
Score = Annotated[
    str, typer.Option("--score", metavar="NAME", help="Score of the best: likelihood, ends or clip:FOLDER.")
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o",
        help="File, folder (ends with /), or - for standard output; unless given, a new folder in outputs/.",
    ),
]  # fmt: skip
NoPromptMetadata = Annotated[
    bool,
    typer.Option(
        "--no-prompt-metadata",
        help="Leave prompt and settings out of the files; the mark as AI-generated stays.",
    ),
]
Report = Annotated[
    bool,
    typer.Option(
        "--report", help="Also write report.html, a page that shows the whole run, into its folder."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no warnings on standard error.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Also hashes, and the traceback of an unexpected failure."),
]
Config = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file of settings; repeatable, later ones win."),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="One setting, over all files; repeatable.")
]


class Decoding:
    """How to decode: the values of the flags that `generate`, `infill` and `sample run` share."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.show_schedule: bool = given.pop("show_schedule")
        self.traj: Path | None = given.pop("traj")
        self._given = given

    def check(self) -> None:
        """Refuse a flag of the decoder that does not write."""
        decoder = self._given["decoder"] or "cm3"
        other = "cm3" if decoder == "diffusion" else "diffusion"
        wrong = [
            table()[name].flag
            for name in own(other)  # type: ignore[arg-type]
            if self._given.get(name) not in (None, [], table()[name].default)
        ]
        if decoder != "diffusion":
            wrong += [
                flag for flag, on in (("--show-schedule", self.show_schedule), ("--traj", self.traj)) if on
            ]
            if self._given["eoser"] is False:
                wrong = ["--no-eoser" if flag == "--eoser" else flag for flag in wrong]
        if not wrong:
            return
        if decoder == "diffusion":
            raise typer.BadParameter(f"{wrong[0]} is a flag of --decoder cm3; leave it out")
        raise typer.BadParameter(f"{wrong[0]} is a flag of the other decoder; add --decoder diffusion")

    def options(self) -> GenerateOptions:
        """The options of the library."""
        return GenerateOptions(**{name: _read(name, value) for name, value in self._given.items()})


def _read(name: str, value: Any) -> Any:
    """A value of the command line as the library takes it."""
    kind = table()[name].type
    if name == "length":
        return length(value)
    if kind == Choice | None:
        return choice(value)
    if isinstance(value, list):
        return tuple(map(choice, value) if kind == tuple[Choice, ...] | None else value) or None
    return value


def _flag(option: Option) -> inspect.Parameter:
    """An option as a parameter that Typer reads."""
    opt, kind = option.opt, option.type
    numeric = kind in (int | None, float | None)
    declared = [option.flag, *([opt.short] if opt.short else [])]
    if kind == bool | None:
        declared = [f"{option.flag}/--no-{option.flag[2:]}"]
    plain: Any = kind
    if option.name == "length" or kind == Choice | None:
        plain = str | None
    elif kind in (tuple[Choice, ...] | None, tuple[str, ...] | None):
        plain = list[str] | None
    told = typer.Option(
        *declared, metavar=opt.metavar, help=opt.help, rich_help_panel=opt.panel,
        callback=finite if kind == float | None else None,
        min=opt.least if numeric else None,
        max=opt.most if numeric else None,
    )  # fmt: skip
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=Annotated[plain, told]
    )


def with_decoding(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags of decoding in the place of its parameter `decoding`."""
    shared = [
        _flag(each)
        for each in table().values()
        if command.__name__ in (each.opt.commands or (command.__name__,))
    ]
    more = (("show_schedule", ShowSchedule, False), ("traj", Traj, None))
    flags = shared + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in more
    ]

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        values = {each.name: given.pop(each.name) for each in flags}
        return command(**given, decoding=Decoding(values))

    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for each in signature.parameters.values():
        parameters += flags if each.name == "decoding" else [each.replace(kind=each.KEYWORD_ONLY)]
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def choice(text: str | None) -> str | dict[str, Any] | None:
    """`name`, or `name,option=value,…` as a mapping; values are JSON where they can be.

    >>> choice("maskgit,tau=10")
    {'name': 'maskgit', 'tau': 10}
    """
    if text is None:
        return None
    name, *rest = re.split(r",(?![^\[]*\])", text)
    options: dict[str, Any] = {}
    for each in rest:
        option, sign, value = each.partition("=")
        if not sign or not option or option == "name":
            raise typer.BadParameter(f"{text!r} is not NAME or NAME,option=value")
        try:
            options[option] = json.loads(value)
        except ValueError:
            options[option] = value
    return {"name": name, **options} if options else name


def length(text: str | None) -> int | Literal["auto"] | None:
    """A whole number from 1, or "auto"."""
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise typer.BadParameter(f"--length {text!r} is neither a number in 1..4096 nor auto")
    return int(text)
