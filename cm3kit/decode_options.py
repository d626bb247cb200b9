"""The options of decoding, each written once: Python, flags, rows, HTTP bodies and docs/cli.md have them from here.

It imports nothing but the standard library, so that `--help` can read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass, fields
from difflib import get_close_matches
from functools import cache
from math import isfinite
from typing import Annotated, Any, Literal, get_args, get_type_hints

from cm3kit.renamed import warn_renamed

DecoderName = Literal["cm3", "diffusion"]
Precision = Literal["auto", "fp32", "bf16", "fp16-packed", "bf16-fp16", "int8"]
DraftName = Literal["none", "lookup", "diffusion"]
CompileName = Literal["auto", "on", "off"]
CacheName = Literal["none", "exact", "causal", "prefix", "dual"]
PromptStyle = Literal["minimal", "page", "plain", "chat"]
"""Minimal HTML as ids of its own (models that were trained here), HTML source, the words alone, or a conversation."""
Choice = str | dict[str, Any]
"""A name, or a mapping with `name` and that function's keyword options."""

SAMPLING, DIFFUSION = "Sampling", "Diffusion decoder"


@dataclass(frozen=True, slots=True)
class Opt:
    """What the doors know of an option besides its type and default.

    Attributes:
        help: one line for people.
        flag: the flag, and `short` its letter; unless given, it follows from the name.
        metavar: what stands for the value in help.
        least: the smallest value, and `most` the largest, both allowed.
        decoder: the only decoder that reads it.
        panel: the part of help where it stands.
        commands: the commands that have the flag; empty is all.
    """

    help: str
    flag: str = ""
    short: str = ""
    metavar: str | None = None
    least: float | None = None
    most: float | None = None
    decoder: DecoderName | None = None
    panel: str = SAMPLING
    commands: tuple[str, ...] = ()

    @property
    def bounds(self) -> str:
        """The range in words; nothing where there is none."""
        if self.least is not None and self.most is not None:
            return f"{self.least:,} to {self.most:,}"
        return f"at least {self.least:,}" if self.least is not None else ""

    def holds(self, value: object) -> bool:
        """Whether a value is a number in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.least is not None and value < self.least, self.most is not None and value > self.most
        return not low and not high and isfinite(value)


def _diffusion(help: str, **more: Any) -> Opt:
    return Opt(help, decoder="diffusion", panel=DIFFUSION, **more)


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What a user may change; None leaves the model's default.

    A preset (`sampler`) replaces the model's defaults but for how ids are drawn, guidance, block size, cache and batch
    size, which it may name too. `schedule`, `order`, `accept` and `modifiers` take a name, or a mapping with `name` and
    options. `overrides` are any other settings of `DiffusionConfig`, as `a.b=c` with a value in YAML.
    """

    guidance: Annotated[
        float | None,
        Opt(
            "Weight of the prompt (classifier-free guidance); 1 is off.",
            "--guidance-scale",
            "-g",
            "W",
            0,
            100,
        ),
    ] = None
    temperature: Annotated[
        float | None, Opt("0 always takes the likeliest token.", metavar="T", least=0, most=100)
    ] = None
    top_p: Annotated[
        float | None,
        Opt(
            "Keep the likeliest tokens that hold this much probability; 0 keeps one.",
            metavar="P",
            least=0,
            most=1,
        ),
    ] = None
    top_k: Annotated[
        int | None, Opt("Keep this many likeliest tokens; 0 is all.", metavar="N", least=0, most=2**31)
    ] = None
    max_tokens: Annotated[
        int | None, Opt("Most tokens of one text or gap.", metavar="N", least=1, most=65_536)
    ] = None
    constrain: Annotated[
        tuple[str, ...] | None,
        Opt(
            "What a gap may say, as GAP=KIND:…; GAP is a number from 0, or * for all; repeatable.",
            metavar="GAP=KIND:…",
        ),
    ] = None
    parallel: Annotated[
        bool, Opt("Fill gaps at once, unaware of one another.", decoder="cm3", commands=("infill",))
    ] = False
    draft: Annotated[
        DraftName | None,
        Opt(
            "What guesses further tokens, for one pass to verify several; it changes no result.",
            decoder="cm3",
        ),
    ] = None
    compile: Annotated[
        CompileName | None,
        Opt(
            "Decoding steps on CUDA: auto replays graphs of their kernels, on fuses these before, off does neither.",
            decoder="cm3",
        ),
    ] = None
    batch_size: Annotated[
        int | None, Opt("Results made at once; it changes none of them.", metavar="N", least=1, most=1024)
    ] = None
    precision: Annotated[
        Precision | None,
        Opt("Number format of matrix products; auto is by device and model, packed ones need a CPU."),
    ] = None
    decoder: Annotated[
        DecoderName | None, Opt("Which decoder writes; unless given, the first that the model has.")
    ] = None
    prompt_style: Annotated[
        PromptStyle | None,
        Opt("How a public model of text reads a page: as HTML, as words alone, or in a conversation."),
    ] = None
    sampler: Annotated[
        str | None,
        _diffusion(
            "A named sampler: uniform, ascending, threshold, cosine, ancestral, llada, dream, …",
            metavar="PRESET",
        ),
    ] = None
    steps: Annotated[
        int | None,
        _diffusion(
            "Passes of the model to write a block; by default the sampler's.",
            metavar="N",
            least=1,
            most=65_536,
        ),
    ] = None
    schedule: Annotated[
        Choice | None,
        _diffusion("How many positions a pass writes: uniform, cosine, ascending, …", metavar="NAME"),
    ] = None
    order: Annotated[
        Choice | None, _diffusion("Which first: probability, margin, entropy, random, …", metavar="NAME")
    ] = None
    accept: Annotated[
        Choice | None,
        _diffusion("Which of those scored: top, threshold, factor, entropy-bound.", metavar="NAME"),
    ] = None
    threshold: Annotated[
        float | None,
        _diffusion(
            "Write every position that is as sure as this, whatever the schedule.", metavar="P", least=0
        ),
    ] = None
    eoser: Annotated[
        bool | None, _diffusion("Rank end tokens lower at first (EOSER), so that texts are not cut short.")
    ] = None
    block_size: Annotated[
        int | None,
        _diffusion(
            "Positions of a block; blocks are written left to right.", metavar="N", least=1, most=65_536
        ),
    ] = None
    cache: Annotated[CacheName | None, _diffusion("Keys and values kept while a block is written.")] = None
    verify_cache: Annotated[
        bool, _diffusion("Compare every pass with one without a cache, and report it.")
    ] = False
    length: Annotated[
        int | Literal["auto"] | None,
        _diffusion(
            "Exact tokens of a text gap, or auto to try several.", metavar="N|auto", least=1, most=4096
        ),
    ] = None
    modifiers: Annotated[
        tuple[Choice, ...] | None,
        _diffusion(
            "What masks again (remdm-cap, remdm-loop, …) or replaces (edit) what was written; repeatable.",
            flag="--remasker",
            metavar="NAME",
        ),
    ] = None
    overrides: Annotated[
        tuple[str, ...] | None,
        _diffusion(
            "Any other setting of the decoder: confidence=tempered, eoser.hard=0.5; repeatable.",
            flag="--set",
            metavar="A.B=C",
        ),
    ] = None

    quota: InitVar[Choice | None] = None

    def __post_init__(self, quota: Choice | None) -> None:
        """`quota` is what `schedule` was called."""
        if quota is not None and not isinstance(quota, property):
            warn_renamed("quota", "schedule")
            object.__setattr__(self, "schedule", quota)

    def check(self) -> None:
        """Refuse a value that no decoder takes; ConfigError (`bad_value`)."""
        from cm3kit_tokenizers.errors import ConfigError

        for name, option in table().items():
            value = getattr(self, name)
            if option.opt.bounds and value is not None and not option.opt.holds(value):
                if value in option.literals:
                    continue
                raise ConfigError(
                    f"option out of range: {name} is {repr(value)[:40]}; give {option.opt.bounds}.",
                    code="bad_value",
                )
            if isinstance(value, str) and option.words and value not in option.words:
                raise ConfigError(
                    f"option {name} is {value!r}; give one of {', '.join(option.words)}.", code="bad_value"
                )


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its name, its type without what may be missing, its default, and the rest."""

    name: str
    type: Any
    default: Any
    opt: Opt

    @property
    def flag(self) -> str:
        """The flag of the command line."""
        return self.opt.flag or f"--{self.name.replace('_', '-')}"

    @property
    def literals(self) -> tuple[str, ...]:
        """The words among its values."""
        plain = [each for each in get_args(self.type) if each is not type(None)] or [self.type]
        return tuple(word for each in plain for word in get_args(each) if isinstance(word, str))

    @property
    def words(self) -> tuple[str, ...]:
        """The values of one that takes a word of a list; of others nothing."""
        return () if self.opt.bounds else self.literals


@cache
def table() -> Mapping[str, Option]:
    """Every option by its name, in the order of help."""
    hints = get_type_hints(GenerateOptions, include_extras=True)
    found = {}
    for each in fields(GenerateOptions):
        kind, opt = get_args(hints[each.name])
        found[each.name] = Option(each.name, kind, each.default, opt)
    return found


def own(decoder: DecoderName) -> Iterator[str]:
    """Names of the options that one decoder alone reads."""
    return (name for name, option in table().items() if option.opt.decoder == decoder)


RENAMED = {"quota": "schedule"}


def under_new_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by today's names, in a file or a request that may know older ones."""
    return {RENAMED.get(name, name): value for name, value in options.items()}


def known(name: str) -> None:
    """Refuse a name that is no option; ValueError with the nearest one."""
    if name not in table():
        near = get_close_matches(name, table(), n=1)
        raise ValueError(f"no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def markdown() -> str:
    """The table of docs/cli.md."""
    lines = ["| flag | in Python, rows and HTTP | value | meaning |", "|---|---|---|---|"]
    for option in table().values():
        flags = ", ".join(f"`{each}`" for each in (option.flag, option.opt.short) if each)
        if option.type == bool | None:
            flags += f", `--no-{option.flag[2:]}`"
        value = ", ".join(f"`{each}`" for each in option.words) or option.opt.bounds
        only = f" ({option.opt.decoder})" if option.opt.decoder else ""
        lines.append(f"| {flags} | `{option.name}` | {value} | {option.opt.help}{only} |")
    return "\n".join(lines) + "\n"
