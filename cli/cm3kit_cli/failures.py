"""Error messages of exceptions."""

from __future__ import annotations

import errno
import sys

from typer import _click

from cm3kit_cli.render import Failure

ISSUES = "Please report it with the output of the same command and --verbose."

LONGEST = 300


def explain(error: BaseException, command: str) -> Failure:
    """The failure that an exception stands for; `internal` where it is a bug."""
    # An error of ours can only be raised once its module is loaded; errors of usage need no import.
    errors = sys.modules.get("cm3kit_tokenizers.errors")
    if errors is not None and isinstance(error, errors.Cm3kitError):
        return Failure(error.code, str(error.args[0]))
    if "torchvision" in str(error) and not isinstance(error, OSError):
        return Failure(
            "broken_package",
            f"torchvision cannot be imported, and other packages fail with it ({error}); see: cm3kit doctor",
        )
    kind = next((kind for kind in EXPLANATIONS if isinstance(error, kind)), None)
    if kind is not None:
        return EXPLANATIONS[kind](error, command)
    if type(error).__name__ == "OutOfMemoryError":
        return _no_memory(error, command)
    # What compilers and parsers say may hold all that they were given.
    said = " ".join(str(error)[:LONGEST].split()) + "…" * (len(str(error)) > LONGEST)
    return Failure("internal", f"unexpected {type(error).__name__}: {said}. {ISSUES}")


def _usage(error: BaseException, command: str) -> Failure:
    assert isinstance(error, _click.exceptions.ClickException)
    hint = f"Try: cm3kit {command} --help".replace("  ", " ")
    message = error.format_message()
    # Typer lets pydantic read values, which tells its own kind of errors and not always the value.
    if (problems := getattr(error.__cause__, "errors", None)) is not None:
        value, said = repr(problems()[0]["input"]), error.message.removeprefix("Value error, ")
        message = message.replace(error.message, said if value in said else f"{value}: {said}")
    return Failure("usage", message if message.endswith((".", "?")) else f"{message}.", error.exit_code, hint)


def _no_memory(error: BaseException, command: str) -> Failure:
    if command.startswith("train"):
        return Failure("no_memory", "out of memory; raise loop.accumulate, or set loop.recompute=true")
    return Failure("no_memory", "out of memory; lower -n, --variants or --batch-size")


def _system(error: BaseException, command: str) -> Failure:
    assert isinstance(error, OSError)
    where = f"{error.filename}: " if error.filename else ""
    code, advice = SYSTEM_CODES.get(error.errno or 0, ("internal", ISSUES))
    return Failure(code, f"{where}{error.strerror or error}; {advice}")


def _missing(error: BaseException, command: str) -> Failure:
    assert isinstance(error, ModuleNotFoundError)
    return Failure("missing_extra", f"the package {error.name!r} is not installed; install it with pip")


SYSTEM_CODES = {
    errno.ENOSPC: ("no_space", "free some space or change -o"),
    errno.EDQUOT: ("no_space", "free some space or change -o"),
    errno.ENOENT: ("no_file", "check the path"),
    errno.EACCES: ("unreadable_file", "check the permissions"),
    errno.EISDIR: ("unreadable_file", "give a file"),
    errno.ENAMETOOLONG: ("cannot_write", "give a shorter name"),
    errno.EROFS: ("cannot_write", "change -o"),
    errno.ENOMEM: ("no_memory", "lower -n or --batch-size"),
}
EXPLANATIONS = {
    _click.exceptions.ClickException: _usage,
    MemoryError: _no_memory,
    OSError: _system,
    ModuleNotFoundError: _missing,
}
