"""Corpora built from packages, and those with a builder beside their checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cm3kit.plugins import load_file
from cm3kit.registry import Registry
from cm3kit_tokenizers.errors import ConfigError

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"


class Builder(Protocol):
    """Builds a corpus and returns its figures."""

    def __call__(
        self, packages: Path, output: Path, report: Callable[[int, int], None], workers: int
    ) -> dict[str, Any]:
        """`packages` is the folder of unpacked packages; `output` is a folder that does not exist."""


corpus: Registry[Builder] = Registry("corpus")


@corpus("emoji")
def _emoji(packages: Path, output: Path, report: Callable[[int, int], None], workers: int) -> dict[str, Any]:
    from cm3kit.data.dictionary import build_emoji

    return build_emoji(packages, output, report)


@corpus("entity-pages")
def _entity_pages(
    packages: Path, output: Path, report: Callable[[int, int], None], workers: int
) -> dict[str, Any]:
    from cm3kit.data.entity_pages import build

    return build(packages, output, report)


@corpus("summaries")
def _summaries(
    packages: Path, output: Path, report: Callable[[int, int], None], workers: int
) -> dict[str, Any]:
    from cm3kit.data.summaries import build

    return build(packages, output, report)


@corpus("task-pages")
def _task_pages(
    packages: Path, output: Path, report: Callable[[int, int], None], workers: int
) -> dict[str, Any]:
    from cm3kit.data.task_pages import build

    return build(packages, output, report)


def builder(name: str) -> Builder:
    """The builder of a corpus, loaded from `checkpoints/NAME/build.py` if it is there.

    Raises:
        ConfigError: the name is unknown (`bad_value`).
    """
    known = sorted({*corpus, *(path.parent.name for path in CHECKPOINTS.glob("*/build.py"))})
    path = CHECKPOINTS / name / "build.py"
    if name not in corpus and path.is_file():
        load_file(path)
    if name not in corpus:
        raise ConfigError(
            f"unknown corpus {name!r}; known: {', '.join(known)}. Builders beside a checkpoint come with a checkout of"
            " the repository, not with the installed package.",
            code="bad_value",
        )
    return corpus[name]
