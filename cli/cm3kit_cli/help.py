"""Help in panels, as wide as the terminal, in plain text: with rich's own `--help` would take three times as long."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

INPUT, OUTPUT, REST = "Input", "Output", "Options"
ORDER = (INPUT, REST, "Sampling", "Diffusion decoder", OUTPUT)
WIDEST = 120
# Panels of flags that many commands share; those of decoding say theirs (`cm3kit.decode_options`).
PANELS = {
    INPUT: "--prompt --prompt-file --task --num-images --seed --model --device --variants --select --image --box"
    " --root --answer --answers --gap",
    "Diffusion decoder": "--show-schedule",
    OUTPUT: "--output --grid --report --traj --diff --in-place --uncover --no-prompt-metadata --force --json --quiet"
    " --verbose",
}
# What Typer calls a type, and what a reader calls it.
METAVARS = {
    "<str>": "TEXT", "<path>": "FILE", "<int range>": "N", "<int>": "N", "<float range>": "X", "<float>": "X",
    "<list[str]>": "TEXT", "<list[Path]>": "FILE",
}  # fmt: skip
# One for every command whose own text has none.
EXAMPLES = {
    "detokenize": "detokenize codes/ -o pictures/",
    "doctor": "doctor",
    "sample status": "sample status outputs/night/",
    "sample merge": "sample merge outputs/night/",
    "sample export": "sample export outputs/night/ --to webdataset -o night-tars/",
    "train vqgan": "train vqgan -c emoji-vqgan --set data=pictures/ -o runs/vqgan",
    "train text": "train text -c emoji-text --set data=pages/ -o runs/text",
    "train cm3": "train cm3 --from pictures --set data=pages/ -o runs/cm3",
    "train mdm": "train mdm --from pictures --set data=pages/ -o runs/mdm",
    "train block": "train block --from pictures --set data=pages/ -o runs/block",
    "train rl": "train rl --from pictures --prompts names.txt --reward-command ./judge.py -o runs/rl",
    "train hybrid": "train hybrid --from pictures --set data=pages/ -o runs/hybrid",
    "config show": "config show emoji-cm3 --set loop.steps=100",
    "data build": "data build emoji --packages packages/ -o data/emoji",
    "data prepare": "data prepare pages/ -o prepared/",
    "data pack": "data pack prepared/ -m pictures -o shards/",
    "data bundle": "data bundle data/pictures -m pictures -o bundle/",
    "data sample": "data sample prepared/ -m pictures -o sample.html",
    "data inspect": "data inspect prepared/",
    "data validate": "data validate prepared/",
    "data card": "data card prepared/",
    "data stats": "data stats prepared/",
    "model list": "model list",
    "model info": "model info pictures",
    "model assemble": "model assemble --text text/ --image image/ --decoder runs/cm3/final -o my-model/",
    "model average": "model average runs/cm3/final runs/more/final --share 0.3 -o averaged/",
    "model convert": "model convert vqgan.ckpt -o image/",
    "model import": "model import Dream-v0-Instruct-7B/ -o dream/",
    "model export": "model export -m pictures -o served/",
    "model push": "model push owner/my-model -m my-model/",
    "tokenize image": "tokenize image photos/ -o codes/",
    "eval recon": "eval recon photos/ --limit 200",
    "eval model": "eval model data/emoji -m pictures --limit 64",
    "eval tasks": "eval tasks caption infill -m pictures --limit 64 -o outputs/tasks/",
}  # fmt: skip
_RANGE = re.compile(r"(-?[\d.]+)<=x<=(-?[\d.]+)")
_ENDLESS = 1e9  # larger bounds are not shown


class PanelCommand(TyperCommand):
    """A command whose help lists its options by panel."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence, whole: a list of commands wraps it."""
        return first_sentence(self.help)

    def format_help_text(self, ctx: typer.Context, formatter: typer.HelpFormatter) -> None:  # type: ignore[name-defined, override]
        """The text of the command, and an example where it has none."""
        super().format_help_text(ctx, formatter)
        name = ctx.command_path.partition(" ")[2]
        if name in EXAMPLES:
            formatter.write(f"\n  Example: cm3kit {EXAMPLES[name]}\n")

    def format_options(self, ctx: typer.Context, formatter: typer.HelpFormatter) -> None:  # type: ignore[name-defined, override]
        """Arguments first, then the panels in the order of `ORDER`."""
        arguments: list[tuple[str, str]] = []
        panels: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            row = readable(record)
            if param.param_type_name == "argument":
                arguments.append(row)
            else:
                panels[_panel(param)].append(row)
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(arguments)
        for name in (*ORDER, *(panel for panel in panels if panel not in ORDER)):
            if panels.get(name):
                with formatter.section(name):
                    formatter.write_dl(panels[name])


def _panel(param: Any) -> str:
    own: str | None = getattr(param, "rich_help_panel", None)
    return own or next((name for name, flags in PANELS.items() if {*flags.split()} & {*param.opts}), REST)


class PanelGroup(TyperGroup):
    """Commands, each with its whole first sentence."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence, whole."""
        return first_sentence(self.help)


def first_sentence(told: str | None) -> str:
    """The first paragraph of a help text on one line."""
    return " ".join((told or "").split("\n\n")[0].split())


def readable(record: tuple[str, str]) -> tuple[str, str]:
    """Flags and help of one option in a reader's words.

    >>> readable(("-n, --num-images <int range>", "Results per prompt.  [default: 1; 1<=x<=10000]"))
    ('-n, --num-images N', 'Results per prompt.  [default: 1; 1 to 10000]')
    """
    flags, told = record
    for typed, name in METAVARS.items():
        flags = flags.replace(typed, name)
    told = _RANGE.sub(_bounds, told)
    return flags, re.sub(r"(?<=[\[ ])x>=(\S+?)(?=[\];])", r"at least \1", told)


def _bounds(found: re.Match[str]) -> str:
    least, most = found.groups()
    return f"at least {least}" if float(most) > _ENDLESS else f"{least} to {most}"


def with_panels(app: typer.Typer) -> typer.Typer:
    """Have every command of an application list its options by panel, as wide as the terminal is."""
    width = min(WIDEST, shutil.get_terminal_size().columns)
    for command in app.registered_commands:
        command.cls = PanelCommand
        command.context_settings = {**(command.context_settings or {}), "max_content_width": width}
    app.info.cls, app.info.context_settings = PanelGroup, {"max_content_width": width}
    if app.registered_callback is not None:
        app.registered_callback.cls = PanelGroup
        app.registered_callback.context_settings = app.info.context_settings
    for group in app.registered_groups:
        if group.typer_instance is not None:
            with_panels(group.typer_instance)
    return app
