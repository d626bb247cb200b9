"""Errors that a user can cause: one line each, with a code that is registered here and nowhere else."""

from __future__ import annotations

from asyncio.exceptions import CancelledError

ERROR_CODES: dict[str, str] = {
    "no_file": "a file or folder that was named does not exist",
    "empty_file": "a file that was named holds nothing",
    "unreadable_file": "a file exists but cannot be read",
    "not_html": "a page is not text in an encoding that keeps ASCII bytes as they are",
    "page_too_large": "a page is over the size limit",
    "page_too_deep": "elements of a page are nested deeper than the limit",
    "no_mask": "a page has no gap to fill",
    "gap_place": "a gap stands where it cannot be filled",
    "gap_overlap": "two gaps share bytes",
    "offline": "something lies elsewhere, and the network cannot be used or reached",
    "bad_selector": "a CSS selector is malformed or selects nothing",
    "bad_box": "the box of a picture region is malformed or outside the picture",
    "bad_picture": "a picture cannot be decoded or is over a limit",
    "picture_outside": "a picture's address leaves the page's folder",
    "unknown_model": "no model of that name or path",
    "untrusted_model": "a recipe names a model that does not ship",
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
    "no_recipe": "a file does not tell how it was made",
    "bad_data": "a data file is missing or malformed",
    "not_finite": "training met a value that is not finite",
    "unstable": "the loss of training jumped",
    "interrupted": "stopped by the user",
    "no_memory": "the machine has too little memory",
    "usage": "the command line is malformed",
    "internal": "a failure that is a bug of cm3kit",
}


def in_a_line(error: BaseException, most: int = 240) -> str:
    """What another library's error says, on one line; a long one ends with a whole word and an ellipsis."""
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
        """Pickled with its code, so that an error of a worker is the same error elsewhere."""
        return _again, (type(self), self.args[0], self.code)


def _again(kind: type[Cm3kitError], message: str, code: str) -> Cm3kitError:
    return kind(message, code=code)


def stops(error: BaseException) -> bool:
    """Whether an exception is to end the program, and is not the trouble of what was being done.

    Packages in Rust panic with exceptions that are no `Exception`, and mean no more by it.
    """
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError | CancelledError)


def as_exception(error: BaseException) -> Exception:
    """The exception, or one that says the same where it is no `Exception`."""
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
