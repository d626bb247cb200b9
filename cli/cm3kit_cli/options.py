"""The flags that commands share: one spelling for each idea."""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from cm3kit.pipelines.kit import GenerateOptions

SYNONYMS = {
    "--cfg": "--guidance-scale",
    "--guidance": "--guidance-scale",
    "--temp": "--temperature",
    "--num-samples": "--num-images",
    "--out": "--output",
}
MAX_SEED = 2**63 - 1


def with_synonyms_spelt_out(arguments: list[str]) -> list[str]:
    """The same arguments with accepted synonyms replaced, up to a bare `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    spelt = []
    for argument in arguments[:end]:
        name, equals, value = argument.partition("=")
        spelt.append(SYNONYMS.get(name, name) + equals + value)
    return spelt + arguments[end:]


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
    typer.Option("--model", "-m", envvar="CM3KIT_MODEL", help="Name or folder of a model; see `model list`."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, max=MAX_SEED, metavar="INT", help="Base seed; random, and printed, unless given."
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale", "-g", min=0, max=100, callback=finite,
        help="Weight of the prompt (classifier-free guidance); 1 is off.",
    ),
]  # fmt: skip
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", min=0, max=100, callback=finite,
        help="0 always takes the likeliest token.",
    ),
]  # fmt: skip
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", min=0, max=1, callback=finite,
        help="Keep the likeliest tokens that hold this much probability.",
    ),
]  # fmt: skip
TopK = Annotated[
    int | None,
    typer.Option("--top-k", min=0, help="Keep this many likeliest tokens; 0 is all."),
]
Precision = Annotated[
    Literal["fp32", "bf16", "fp16-packed", "int8"] | None,
    typer.Option(
        "--precision", help="Number format of the weights in matrix products; packed ones need a CPU."
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1, help="Most tokens of one text or gap."),
]
Decoder = Annotated[
    Literal["cm3", "diffusion"] | None,
    typer.Option("--decoder", help="Which decoder writes; unless given, the first that the model has."),
]
PromptStyle = Annotated[
    Literal["page", "plain", "chat"] | None,
    typer.Option(
        "--prompt-style",
        help="How a public model of text reads a page: as HTML, as words alone, or in a conversation.",
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler", metavar="PRESET",
        help="A named diffusion sampler: uniform, ascending, threshold, cosine, ancestral, llada, dream, …",
    ),
]  # fmt: skip
Steps = Annotated[
    int | None,
    typer.Option("--steps", min=1, help="Passes of the model to write a block; by default the sampler's."),
]
Quota = Annotated[
    str | None,
    typer.Option("--quota", metavar="NAME", help="How many places a pass writes: uniform, cosine, ascending, …"),
]  # fmt: skip
Order = Annotated[
    str | None,
    typer.Option("--order", metavar="NAME", help="Which first: probability, margin, entropy, random, …"),
]
Accept = Annotated[
    str | None,
    typer.Option("--accept", metavar="NAME", help="Which of those scored: top, threshold, factor, entropy-bound."),
]  # fmt: skip
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold", min=0, callback=finite,
        help="Write every place that is as sure as this, whatever the quota.",
    ),
]  # fmt: skip
Eoser = Annotated[
    bool | None,
    typer.Option("--eoser/--no-eoser", help="Rank ends lower at first, so that texts are not cut short."),
]
Modifiers = Annotated[
    list[str] | None,
    typer.Option(
        "--modifier", metavar="NAME",
        help="What takes back or replaces what was written: remdm-cap, remdm-loop, edit, …; repeatable.",
    ),
]  # fmt: skip
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=C",
        help="Any other setting of the diffusion decoder: confidence=tempered, eoser.hard=0.5; repeatable.",
    ),
]  # fmt: skip
BlockSize = Annotated[
    int | None,
    typer.Option("--block-size", min=1, help="Places of a block; blocks are written left to right."),
]
Cache = Annotated[
    Literal["none", "exact", "causal", "prefix", "dual"] | None,
    typer.Option("--cache", help="Keys and values kept while a block is written."),
]
VerifyCache = Annotated[
    bool, typer.Option("--verify-cache", help="Compare every pass with one without a cache, and tell.")
]
Length = Annotated[
    str | None,
    typer.Option("--length", metavar="N|auto", help="Exact tokens of a text gap, or auto to try several."),
]
ShowSchedule = Annotated[
    bool,
    typer.Option("--show-schedule", help="Print how many places each pass will write, and stop."),
]
Traj = Annotated[
    Path | None,
    typer.Option("--traj", metavar="FILE", help="Also write in which order; see `show traj`."),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, max=1024, help="Results made at once.")]
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
        help="Leave prompt and settings out of the files; the mark that a model made them stays.",
    ),
]
Report = Annotated[
    bool, typer.Option("--report", help="Also a page that shows the whole run, report.html in its folder.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show where an unexpected failure came from."),
]
Config = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file of settings; repeatable, later ones win."),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="One setting, over all files; repeatable.")
]


CM3_FLAGS = ("parallel", "precision")
DIFFUSION_FLAGS = (
    "sampler", "steps", "quota", "order", "accept", "threshold", "eoser", "modifiers", "block_size", "cache",
    "verify_cache", "length", "overrides", "show_schedule", "traj",
)  # fmt: skip
# Flags that are not called as their option.
SPELT = {"modifiers": "modifier", "overrides": "set"}


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to decode: the flags that `generate` and `infill` share."""

    decoder: Decoder = None
    guidance: Guidance = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    max_tokens: MaxTokens = None
    precision: Precision = None
    prompt_style: PromptStyle = None
    sampler: Sampler = None
    steps: Steps = None
    quota: Quota = None
    order: Order = None
    accept: Accept = None
    threshold: Threshold = None
    eoser: Eoser = None
    modifiers: Modifiers = None
    block_size: BlockSize = None
    cache: Cache = None
    verify_cache: VerifyCache = False
    length: Length = None
    overrides: Settings = None
    show_schedule: ShowSchedule = False
    traj: Traj = None

    def check(self, **more: object) -> None:
        """Refuse a flag of the decoder that does not write; `more` are flags of one command alone."""
        given = {each.name: getattr(self, each.name) for each in fields(self)} | more
        own = {"diffusion": CM3_FLAGS}.get(self.decoder or "cm3", DIFFUSION_FLAGS)
        wrong = next((name for name in own if given.get(name) not in (None, False, [])), None)
        if wrong is None and self.eoser is False and self.decoder != "diffusion":
            wrong = "no_eoser"
        if wrong is None:
            return
        flag = f"--{SPELT.get(wrong, wrong).replace('_', '-')}"
        if self.decoder == "diffusion":
            raise typer.BadParameter(f"{flag} is a flag of --decoder cm3; leave it out")
        raise typer.BadParameter(f"{flag} is a flag of the other decoder; add --decoder diffusion")

    def options(self, **more: Any) -> GenerateOptions:
        """The options of the library; `more` are those of one command alone."""
        from cm3kit.pipelines.kit import GenerateOptions

        own = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("show_schedule", "traj"):
            del own[name]
        for name in ("quota", "order", "accept"):
            own[name] = choice(own[name])
        own["modifiers"] = tuple(map(choice, self.modifiers)) if self.modifiers else None
        own["overrides"] = tuple(self.overrides) if self.overrides else None
        return GenerateOptions(**{**own, "length": length(self.length), **more})


def with_decoding(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags of `Decoding` in the place of its parameter `decoding`."""

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        own = {each.name: given.pop(each.name) for each in fields(Decoding)}
        return command(**given, decoding=Decoding(**own))

    hints = get_type_hints(Decoding, include_extras=True)
    flags = [
        inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name]
        )
        for each in fields(Decoding)
    ]
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
