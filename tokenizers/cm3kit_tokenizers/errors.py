"""Errors that a user can cause: one line each, with a code that is registered here."""

from __future__ import annotations

from asyncio.exceptions import CancelledError

ERROR_CODES: dict[str, str] = {
    "no_file": "the given file or folder does not exist",
    "empty_file": "the given file is empty",
    "unreadable_file": "a file exists but cannot be read",
    "not_html": "a page is not text in an encoding that keeps ASCII bytes as they are",
    "page_too_large": "a page is over the size limit",
    "page_too_deep": "elements of a page are nested deeper than the limit",
    "no_mask": "a page has no gap to fill",
    "gap_place": "a gap is at a place that cannot be filled",
    "gap_overlap": "two gaps share bytes",
    "offline": "a resource is not on this machine, and the network is unavailable or disabled",
    "bad_selector": "a CSS selector is malformed or selects nothing",
    "bad_box": "the box of a picture region is malformed or outside the picture",
    "bad_picture": "a picture cannot be decoded or is over a limit",
    "picture_outside": "a picture's address leaves the page's folder",
    "unknown_model": "no model of that name or path",
    "untrusted_model": "a recipe names a model that is not shipped with cm3kit",
    "bad_checkpoint": "a checkpoint is incomplete or does not fit its configuration",
    "bad_config": "a configuration value or key is wrong",
    "unknown_name": "a name is not registered",
    "bad_value": "an option's value is out of range",
    "too_long": "a prompt or page does not fit the model's window",
    "exists": "an output exists already",
    "in_use": "another process is writing there",
    "no_space": "the disk is full",
    "cannot_write": "an output cannot be written",
    "missing_extra": "an optional package is needed",
    "broken_package": "an installed package cannot be imported",
    "no_recipe": "a file does not record how it was made",
    "bad_data": "a data file is missing or malformed",
    "not_finite": "training produced a value that is not finite",
    "unstable": "the training loss jumped",
    "interrupted": "stopped by the user",
    "no_memory": "the machine has too little memory",
    "usage": "the command line is malformed",
    "internal": "a bug in cm3kit",
}


def in_a_line(error: BaseException, most: int = 240) -> str:
    """The message of another library's error on one line, truncated at a word with an ellipsis."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= most else f"{line[: most - 1].rsplit(' ', 1)[0]} …"


class Cm3kitError(Exception):
    """What happened, the value, and what to do, in one line.

    Args:
        message: the line a user reads.
        code: a key of `ERROR_CODES`.
    """

    def __init__(self, message: str, *, code: str) -> None:
        if code not in ERROR_CODES:
            raise KeyError(f"error code {code!r} is not registered in ERROR_CODES")
        super().__init__(message)
        self.code = code

    def __str__(self) -> str:
        return f"{self.args[0]} [{self.code}]"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the code too, so that an error of a worker keeps it in the parent process."""
        return _again, (type(self), self.args[0], self.code)


def _again(kind: type[Cm3kitError], message: str, code: str) -> Cm3kitError:
    return kind(message, code=code)


def stops(error: BaseException) -> bool:
    """Whether an exception ends the program, instead of only failing the current operation.

    Panics of Rust packages derive from `BaseException`, but only fail the operation.
    """
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError | CancelledError)


def as_exception(error: BaseException) -> Exception:
    """The exception itself, or a RuntimeError with its message if it is not an `Exception`."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


class PageError(Cm3kitError):
    """A page, or a gap in it, cannot be used."""


class PictureError(Cm3kitError):
    """A picture cannot be used."""


class ModelError(Cm3kitError):
    """A model cannot be found or loaded."""


class ConfigError(Cm3kitError):
    """A setting is wrong."""


class DataError(Cm3kitError):
    """Training data is missing or malformed."""


class OutputError(Cm3kitError):
    """A result cannot be written."""
