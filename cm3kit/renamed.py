"""Old names that still work for one release, with a warning of one line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class RenamedWarning(FutureWarning):
    """Something has another name now."""

    plain = True  # the command line prints the message alone


def warn_renamed(old: str, new: str) -> None:
    """Say that `old` is called `new` now."""
    warnings.warn(
        f"{old} is called {new} now; the old name goes with the next release.", RenamedWarning, stacklevel=3
    )


@contextmanager
def old_names() -> Iterator[None]:
    """Read old names without a word: in files that were written here, which nobody is asked to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RenamedWarning)
        yield
