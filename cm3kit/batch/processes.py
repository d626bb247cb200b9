"""Several processes on one folder, one shard each: started here, or by `accelerate launch` and `torchrun`.

When the parent is killed, its processes end after their current group of outputs.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from cm3kit.batch.job import How, SampleJob, prepare, tally
from cm3kit.batch.manage import merge
from cm3kit.batch.run import Warn, Watch, run
from cm3kit.batch.store import Shard
from cm3kit.devices import processors
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError


def part(shard: Shard, index: int, count: int) -> Shard:
    """Part `index` of `count` of a shard."""
    return shard[0] + shard[1] * index, shard[1] * count


def launched(shard: Shard, device: str, environment: Mapping[str, str]) -> tuple[Shard, str]:
    """Shard and device of this process, taken from RANK and WORLD_SIZE if a launcher started it."""
    try:
        world, rank = int(environment.get("WORLD_SIZE", 1)), int(environment.get("RANK", 0))
        local = int(environment.get("LOCAL_RANK", rank))
    except ValueError:
        raise ConfigError(
            "RANK, LOCAL_RANK and WORLD_SIZE are not all numbers; unset them, or use accelerate launch.",
            code="bad_value",
        ) from None
    if world <= 1:
        return shard, device
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{local % torch.cuda.device_count()}"
    return part(shard, rank, world), device


def run_processes(
    job: SampleJob, how: How, count: int, watch: Watch = lambda done, total, note: None,
    warn: Warn = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """As `run.run`, in `count` processes, each with its share of the cores; then their manifests are merged.

    Rows of a process that dies are sampled by the next run.
    """
    job, rows = prepare(job, how)
    context = multiprocessing.get_context("spawn")
    workers = []
    try:
        for index in range(count):
            mine, theirs = context.Pipe(duplex=False)
            own = replace(how, shard=part(how.shard, index, count))
            process = context.Process(
                target=_work, args=(theirs, job, own, max(1, processors() // count)), daemon=True
            )
            process.start()
            theirs.close()
            workers.append(_Worker(process, mine))
        _listen(workers, watch, warn)
    finally:
        for worker in workers:
            if worker.process.is_alive():
                worker.process.terminate()
            worker.process.join()
    for worker in workers:
        if worker.error is not None:
            raise Cm3kitError(worker.error[1], code=worker.error[0])
    if how.shard == (0, 1):  # otherwise other shards may still be running
        return merge(job.output, warn=warn)
    return tally(job, rows, how.shard)


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    done: int = 0
    total: int = 0
    note: str = ""
    over: bool = False
    error: tuple[str, str] | None = None


def _listen(workers: list[_Worker], watch: Watch, warn: Warn) -> None:
    while busy := {each.pipe: each for each in workers if not each.over}:
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index]
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                worker.over = True
                worker.process.join()
                warn(f"a process ended with {worker.process.exitcode}; repeat the command for its rows")
                continue
            if kind == "at":
                worker.done, worker.total, worker.note = value
                rate = sum(float(each.note.split()[0]) for each in workers if each.note)
                done, total = sum(each.done for each in workers), sum(each.total for each in workers)
                watch(done, total, f"{rate:.2f} outputs/s in {len(workers)} processes")
            else:
                worker.over, worker.error = True, value


def _work(pipe: Connection, job: SampleJob, how: How, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    error = None
    try:
        run(job, how, lambda done, total, note: pipe.send(("at", (done, total, note))))
    except Cm3kitError as raised:
        error = (raised.code, str(raised.args[0]))
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(1)
    with suppress(OSError):
        pipe.send(("over", error))
