"""What `generate` and `infill` are to do, and what they made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3kit.fill.fillers import Task
from cm3kit.fill.prompts import Prompt

if TYPE_CHECKING:
    from cm3kit.fill.kit import GenerateOptions
    from cm3kit_tokenizers.page import Page

SUFFIXES: Mapping[str, str] = {
    "image": ".png", "text": ".txt", "caption": ".txt", "document": ".html", "pair": ".png",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Where:
    """What to write and where.

    `output` is as in `outputs.plan`, `traj` a file for the trajectories; `report` adds a page with all results to a
    folder.
    """

    output: str | None = None
    force: bool = False
    sheet: bool = True
    prompt_metadata: bool = True
    traj: Path | None = None
    report: bool = False


@dataclass(frozen=True, slots=True)
class GenerateJob:
    """`n` results for each prompt; sample i of a prompt uses the random stream (seed, i).

    With `best_of` each result is that of so many samples which `score` (`choice.Selector`) puts first.
    """

    prompts: tuple[Prompt, ...]
    task: Task
    n: int
    seed: int
    options: GenerateOptions
    where: Where = field(default_factory=Where)
    best_of: int = 1
    score: str = "likelihood"


@dataclass(frozen=True, slots=True)
class InfillJob:
    """A page with gaps, filled `variants` times; `in_place` overwrites it and writes no other file."""

    page: Page
    name: str
    variants: int
    seed: int
    options: GenerateOptions
    report: bool = False
    where: Where = field(default_factory=Where)
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class Saved:
    """Results of a job. `content` is the result itself if it was not written to a file.

    `verification` compares cached with uncached results, if requested; `warnings` are on files that were not copied,
    on words that are not in the training data, and on results that are all equal.
    """

    run_id: str
    samples: tuple[Mapping[str, Any], ...]
    paths: tuple[Path, ...] = ()
    sheet: Path | None = None
    report: Path | None = None
    folder: Path | None = None
    content: bytes | None = None
    diff: str = ""
    overview: Path | None = None
    trajectories: tuple[Path, ...] = ()
    verification: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
