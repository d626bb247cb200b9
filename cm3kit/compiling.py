"""Failures of `torch.compile`: what is one, and what it says in a line. Compilers print their whole input with them."""

from __future__ import annotations

from collections.abc import Iterator

LONGEST = 160
# Packages whose exceptions come from compiling, and not from what is compiled.
_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")


def is_compile_failure(error: BaseException) -> bool:
    """Whether an exception, or what it was raised for, is one of `torch.compile` or of what it runs."""
    return any(type(each).__module__.startswith(_COMPILERS) for each in _causes(error))


def reason(error: BaseException) -> str:
    """Why, in at most `LONGEST` characters: the first line that says so, or else the first there are."""
    *_, first = _causes(error)
    lines = [line.strip() for line in str(first)[: 1 << 20].splitlines() if line.strip()]
    # What is wrong stands behind the command, in the words of the compiler; a first line often names only that.
    found = next((line for line in lines if "error: " in line), " ".join(lines[:2])) or type(first).__name__
    return found if len(found) <= LONGEST else f"{found[:LONGEST].rstrip()}…"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised for, each once."""
    met: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in met:
        met.add(id(at))
        yield at
        at = at.__cause__ or at.__context__
