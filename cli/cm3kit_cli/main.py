"""Entry point: parse, call the library, render."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from cm3kit_cli import (
    config,
    data,
    doctor,
    estimate,
    evaluate,
    generate,
    infill,
    model,
    reproduce,
    sample,
    score,
    serve,
    tokenizing,
    train,
)
from cm3kit_cli import show as show_files
from cm3kit_cli.failures import explain
from cm3kit_cli.help import with_panels
from cm3kit_cli.options import with_synonyms_spelt_out, without_plugins
from cm3kit_cli.render import Failure, Reply, show, show_failure, version

INTERRUPTED, TERMINATED = 130, 143

app = typer.Typer(name="cm3kit", add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command("generate")(generate.generate)
app.command("infill")(infill.infill)
app.command("score")(score.score)
app.add_typer(sample.app)
app.add_typer(train.app)
app.command("estimate")(estimate.estimate)
app.add_typer(config.app)
app.add_typer(data.app)
app.add_typer(model.app)
app.add_typer(tokenizing.app)
app.command("detokenize")(tokenizing.detokenize)
app.add_typer(evaluate.app)
app.add_typer(show_files.app)
app.command("info")(reproduce.info)
app.command("reproduce")(reproduce.reproduce)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
with_panels(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cm3kit {version()}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE", help="A Python file that registers more parts; repeatable."),
    ] = None,
) -> None:
    """Web pages whose pictures are tokens: generate them, and fill the gaps in them."""


# What torchao and bitsandbytes log whenever transformers imports them, of kernels that this torch has not.
CHATTY = ("torchao", "torch.utils._pytree", "bitsandbytes", "diffusers.quantizers")


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 (failed), 2 (usage), 3 (run it again), 130 or 143."""
    warnings.showwarning = _shown  # type: ignore[assignment]
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.ERROR)
    given = with_synonyms_spelt_out(list(sys.argv[1:] if argv is None else argv))
    given, files = without_plugins(given)
    arguments = given or ["--help"]
    tree = get_command(app)  # making it takes as long as the rest of the start without torch
    command, as_json = _command_of(tree, arguments), "--json" in arguments
    terminated: list[int] = []
    try:
        with _sigterm_interrupts(terminated):
            if files and not {"--help", "--version"} & set(arguments):
                from cm3kit import plugins

                plugins.add(files)
                plugins.load()
                tree = get_command(app)
            answer = tree.main(args=arguments, prog_name="cm3kit", standalone_mode=False)
            if isinstance(answer, Reply):
                show(answer, command, as_json)
                return answer.status
        if answer == INTERRUPTED:
            raise KeyboardInterrupt
        return answer if isinstance(answer, int) else 0
    except BrokenPipeError:
        # The reader has gone; leave nothing for the interpreter's last flush to fail on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        word, status = ("terminated", TERMINATED) if terminated else ("interrupted", INTERRUPTED)
        show_failure(Failure("interrupted", word, status), command, as_json)
        if command == "serve":
            # It holds nothing that has to be put down, and an interpreter with torch in it takes seconds to end.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the edge: whatever went wrong, panics of packages too, becomes one line
        if _wants_traceback(arguments):
            import traceback

            traceback.print_exc()
        failure = explain(error, command)
        show_failure(failure, command, as_json)
        return failure.status


def _shown(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Our own warnings in a line on standard error; others as Python has them."""
    if getattr(category, "plain", False):
        typer.echo(f"warning: {message}", err=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, *where[:2]))


def _wants_traceback(arguments: list[str]) -> bool:
    return "--verbose" in arguments or "-v" in arguments or os.environ.get("CM3KIT_DEBUG") == "1"


def _command_of(command: Any, arguments: list[str]) -> str:
    """The command that the arguments name, such as `train cm3`."""
    names: list[str] = []
    for argument in arguments:
        inner = getattr(command, "commands", {}).get(argument)
        if inner is None:
            break
        command, names = inner, [*names, argument]
    return " ".join(names)


@contextmanager
def _sigterm_interrupts(received: list[int]) -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that files are cleaned up and training saves.

    The signal is noted in `received`. A handler set elsewhere stays.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()
    ours = main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
