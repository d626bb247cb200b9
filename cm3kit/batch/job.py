"""What a sampling run is: its rows, its settings, and the outputs that are to be made."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cm3kit.batch.choice import Selector
from cm3kit.batch.rows import Row, Rows, SampleTask, read_rows
from cm3kit.batch.store import JOB, Key, Shard, begin, read_job, read_lines
from cm3kit.fill.folder import find, fingerprints
from cm3kit.fill.options import GenerateOptions
from cm3kit_tokenizers.errors import ConfigError


@dataclass(frozen=True)
class SampleJob:
    """What is to be sampled, and into which folder.

    Attributes:
        prompts: a file of rows; see `rows.Asked`.
        task: of rows that name none, as `n`, the number of their outputs.
        seed: of the run; each row's own follows from it and the row's id. None takes the folder's, or draws one.
        best_of: candidates for each output, of which `score` chooses one.
        prompt_metadata: whether files and manifest tell prompt and settings.
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
    """How to run a job, which changes none of its outputs.

    Attributes:
        shard: (i, n): only the rows i, i + n, i + 2n, …
        resume: go on with a folder that was begun; otherwise it must be new.
        retry_errors: try rows again that failed.
        time_limit: seconds after which no row is begun.
    """

    shard: Shard = (0, 1)
    resume: bool = True
    retry_errors: bool = False
    time_limit: float | None = None


def prepare(job: SampleJob, how: How) -> tuple[SampleJob, Rows]:
    """Read the rows, and write the job down or hold it to what is written; the job with its seed."""
    if not how.resume and (job.output / JOB).exists():
        raise ConfigError(
            f"{job.output} was begun before, and --no-resume is given; choose another -o.", code="bad_config"
        )
    if job.best_of > 1:
        Selector.check(job.score)
    rows = read_rows(job.prompts)
    if job.seed is None and not (job.output / JOB).is_file():
        drawn = replace(job, seed=int.from_bytes(os.urandom(4)) >> 1)
        try:
            begin(job.output, _told(drawn, rows))
            return drawn, rows
        except ConfigError:  # another shard was quicker: its seed is the folder's
            pass
    if job.seed is None:
        job = replace(job, seed=read_job(job.output)["seed"])
    begin(job.output, _told(job, rows))
    return job, rows


def _told(job: SampleJob, rows: Rows) -> dict[str, Any]:
    """What outputs depend on; batch size, shards and devices are not among it."""
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
    """The options without the batch size, which changes no output."""
    return replace(options, batch_size=None)


def count(row: Row, job: SampleJob) -> int:
    """Outputs of a row; one that is wrong has its error for one."""
    return 1 if row.error else row.asked.n or job.n


def keys(job: SampleJob, rows: Rows, shard: Shard) -> list[Key]:
    """Outputs that a shard is to make."""
    mine = [row for row in rows.rows if row.number % shard[1] == shard[0]]
    return [(row.number, index) for row in mine for index in range(count(row, job))]


def tally(job: SampleJob, rows: Rows, shard: Shard) -> dict[str, Any]:
    """What `run` returns."""
    wanted, lines = keys(job, rows, shard), read_lines(job.output)
    statuses = [lines[key]["status"] for key in wanted if key in lines]
    done = statuses.count("ok")
    return {
        "folder": job.output, "seed": job.seed, "outputs": len(wanted), "done": done,
        "failed": len(statuses) - done, "missing": len(wanted) - len(statuses),
    }  # fmt: skip


def seed_of(run_seed: int, id: str) -> int:
    """The seed of a row without one: 53 bits, which JSON readers of any language keep."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{id}".encode()).digest()) >> 203
