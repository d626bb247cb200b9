"""A sampling run: its rows, its settings, and its outputs."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cm3kit.batch.choice import Selector
from cm3kit.batch.rows import Row, Rows, SampleTask, read_rows
from cm3kit.batch.store import JOB, Key, begin, counts, read_job, read_lines
from cm3kit.claims import Shard
from cm3kit.fill.finding import find
from cm3kit.fill.folder import fingerprints
from cm3kit.fill.options import GenerateOptions
from cm3kit_tokenizers.errors import ConfigError


@dataclass(frozen=True)
class SampleJob:
    """Rows to sample, and the output folder.

    Attributes:
        prompts: a file of rows; see `rows.Asked`.
        task: default task of rows; `n` is the default number of outputs per row.
        seed: of the run; the seeds of rows are derived from it and their ids. None uses the folder's, or draws one.
        best_of: candidates per output, of which `score` chooses one.
        prompt_metadata: whether files and manifest contain prompt and settings.
    """

    prompts: Path
    output: Path
    model: str | None = None
    device: str = "auto"
    task: SampleTask = "image"
    n: int = 1
    seed: int | None = None
    options: GenerateOptions = field(default_factory=GenerateOptions)
    best_of: int = 1
    score: str = "likelihood"
    prompt_metadata: bool = True


@dataclass(frozen=True)
class How:
    """Execution settings of a job; none changes its outputs.

    Attributes:
        shard: (i, n): only the rows i, i + n, i + 2n, …
        resume: continue an existing folder; otherwise it must be new.
        retry_errors: retry failed rows.
        time_limit: seconds after which no row is started.
    """

    shard: Shard = (0, 1)
    resume: bool = True
    retry_errors: bool = False
    time_limit: float | None = None


def prepare(job: SampleJob, how: How) -> tuple[SampleJob, Rows]:
    """Read the rows, and save the job or compare it with the saved one; returns the job with its seed."""
    if not how.resume and (job.output / JOB).exists():
        raise ConfigError(
            f"{job.output} exists from an earlier run, and --no-resume is given; choose another -o.",
            code="bad_config",
        )
    Selector.check(job.score, job.best_of)
    rows = read_rows(job.prompts)
    if job.seed is None and not (job.output / JOB).is_file():
        drawn = replace(job, seed=int.from_bytes(os.urandom(4)) >> 1)
        try:
            begin(job.output, _told(drawn, rows))
            return drawn, rows
        except ConfigError:  # another shard saved the job first: use its seed
            pass
    if job.seed is None:
        job = replace(job, seed=read_job(job.output)["seed"])
    begin(job.output, _told(job, rows))
    return job, rows


def _told(job: SampleJob, rows: Rows) -> dict[str, Any]:
    """All settings that outputs depend on; not batch size, drafts, shards and devices."""
    usual = asdict(GenerateOptions())
    kept = {key: value for key, value in asdict(plain(job.options)).items() if value != usual[key]}
    folder = find(job.model)
    chosen = {"best_of": job.best_of, "score": job.score} if job.best_of > 1 else {}
    return {
        "prompts_sha256": rows.sha256, "rows": len(rows.rows),
        "outputs": sum(count(each, job) for each in rows.rows), "task": job.task, "n": job.n, "seed": job.seed,
        "options": kept, **chosen, "prompt_metadata": job.prompt_metadata, "model": folder.name,
        "model_sha256": fingerprints(folder),
    }  # fmt: skip


def plain(options: GenerateOptions) -> GenerateOptions:
    """The options without batch size and draft, which do not change outputs."""
    return replace(options, batch_size=None, draft=None)


def count(row: Row, job: SampleJob) -> int:
    """Number of outputs of a row; an invalid row counts as one, its error."""
    return 1 if row.error else row.asked.n or job.n


def keys(job: SampleJob, rows: Rows, shard: Shard) -> list[Key]:
    """Outputs of a shard."""
    mine = [row for row in rows.rows if row.number % shard[1] == shard[0]]
    return [(row.number, index) for row in mine for index in range(count(row, job))]


def tally(job: SampleJob, rows: Rows, shard: Shard) -> dict[str, Any]:
    """The counts that `run` returns."""
    wanted, lines = keys(job, rows, shard), read_lines(job.output)
    return {
        "folder": job.output, "seed": job.seed, "outputs": len(wanted),
        **counts([lines[key] for key in wanted if key in lines], len(wanted)),
    }  # fmt: skip


def seed_of(run_seed: int, id: str) -> int:
    """The seed of a row without one: 53 bits, which JSON readers of any language keep exactly."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{id}".encode()).digest()) >> 203
