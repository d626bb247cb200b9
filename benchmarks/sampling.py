"""Sampling many rows: what kills cost, how fast it is, and whether company changes a row.

python benchmarks/sampling.py --model checkpoints/pictures [--part kill,speed,company] [--rows 400] [--kills 20]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import cm3kit
from cm3kit.batch import run as sampling
from cm3kit.batch.commands import encode
from cm3kit.batch.job import How, SampleJob
from cm3kit.batch.manage import contents, merge
from cm3kit.batch.processes import run_processes
from cm3kit.batch.store import manifests, read_lines
from cm3kit.fill.kit import GenerateOptions
from cm3kit.provenance.records import how_made
from cm3kit.publish import write_atomic

NOUNS = "apple pear heart circle square dog cat flag clock hand face star moon sun fish bird house key book car".split()
COLOURS = "red green blue yellow purple orange black white brown pink".split()


def rows_of(path: Path, count: int, rows: list[dict[str, Any]] | None = None) -> Path:
    """A file of rows: short texts with lengths of their own, and some pictures, unless given."""
    rng = random.Random(0)
    names = [f"{colour} {noun}" for colour, noun in itertools.product(COLOURS, NOUNS)]
    usual = [{"prompt": rng.choice(names), "max_tokens": rng.randint(2, 6)} for _ in range(count)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows or usual))
    return path


def hashes(folder: Path) -> dict[tuple[int, int], str]:
    """The file of every output, checked; "damaged" where it is not what the manifest says."""
    return {key: line["sha256"] if content else "damaged" for key, line, content in contents(folder)}


def kill(args: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Kill the process (-9) at random times, start it again, and compare what is there at last with a run in one go.

    Processes are forked with the model in memory, so that the time goes into rows and not into loading.
    """
    path = rows_of(base / "rows.jsonl", args.rows)
    kit, load = cm3kit.load(args.model, "cpu"), cm3kit.load
    job = SampleJob(path, base / "killed", args.model, "cpu", "text", seed=1)
    rng, kills, midway, over = random.Random(1), 0, 0, False
    cm3kit.load = lambda name=None, device="auto": kit  # type: ignore[assignment]
    context = multiprocessing.get_context("fork")
    while not over:
        before = len(read_lines(job.output))
        process = context.Process(target=sampling.run, args=(job,))
        process.start()
        goal = before + rng.randint(0, max(1, args.rows // (2 * args.kills)))
        while kills < args.kills and process.is_alive() and len(read_lines(job.output)) < goal:
            process.join(rng.uniform(0.01, 0.1))
        process.join(rng.uniform(0, 0.3) if kills < args.kills else None)
        if process.is_alive():
            process.kill()
        process.join()
        over = process.exitcode == 0
        kills += not over
        midway += not over and len(read_lines(job.output)) > before
        print(f"{kills} kills, {len(read_lines(job.output))} rows", file=sys.stderr, flush=True)
    whole = replace(job, output=base / "whole")
    sampling.run(whole)
    cm3kit.load = load  # type: ignore[assignment]
    lines = [json.loads(line) for each in manifests(job.output) for line in each.read_text().splitlines()]
    done, wanted = hashes(job.output), hashes(whole.output)
    files = {
        str(each.relative_to(job.output)) for each in (job.output / "files").rglob("*") if each.is_file()
    }
    return {
        "rows": args.rows, "kills": kills, "of_them_after_new_rows": midway,
        "missing": len(wanted.keys() - done.keys()), "doubled": len(lines) - len(done),
        "different": sum(done.get(key) != each for key, each in wanted.items()),
        "files_of_no_row": len(files - {line["path"] for line in lines}),
    }  # fmt: skip


def speed(args: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Pictures a second against a loop of `Kit.generate` that writes such files too; loading is in neither."""
    kit, load = cm3kit.load(args.model, "cpu"), cm3kit.load
    path = rows_of(base / "rows.jsonl", args.pictures, [{"prompt": f"{c} {n}", "seed": i} for i, (c, n) in
                   enumerate(itertools.islice(itertools.product(COLOURS, NOUNS), args.pictures))])  # fmt: skip
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found: dict[str, Any] = {"pictures": len(rows), "threads": torch.get_num_threads()}
    kit.generate("red apple")
    for name, size in (("naive", None), ("naive_batch_1", 1)):
        (base / name).mkdir()
        options = GenerateOptions(batch_size=size)
        how, clocks = how_made(kit, options, "image"), (time.monotonic(), time.process_time())
        for place, row in enumerate(rows):
            made = kit.generate(row["prompt"], seed=row["seed"], options=options)[0]
            write_atomic(base / name / f"{place}.png", encode(made, {**how, **row, "index": 0}))
        found[name] = _pace(len(rows), clocks)
    cm3kit.load = lambda name=None, device="auto": kit  # type: ignore[assignment]
    for size in args.sizes:
        job = SampleJob(path, base / f"batch-{size}", args.model, "cpu", seed=1)
        clocks = (time.monotonic(), time.process_time())
        sampling.run(replace(job, options=GenerateOptions(batch_size=size)))
        found[f"sample_run_batch_{size}"] = _pace(len(rows), clocks)
    cm3kit.load = load  # type: ignore[assignment]
    best = max(found[f"sample_run_batch_{size}"]["per_cpu_second"] for size in args.sizes)
    found["times_naive"] = round(best / found["naive"]["per_cpu_second"], 2)
    found["times_naive_batch_1"] = round(best / found["naive_batch_1"]["per_cpu_second"], 2)
    return found


def _pace(count: int, clocks: tuple[float, float]) -> dict[str, float]:
    wall, cpu = time.monotonic() - clocks[0], time.process_time() - clocks[1]
    return {"per_second": round(count / wall, 3), "per_cpu_second": round(count / cpu, 3)}


def company(args: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Outputs that differ from those of batch size 1 in one process, over batch sizes, shards, processes and order."""
    page = "<h1>red apple</h1><p><mask></p><p><img alt='<mask>' src='<mask>'></p>"
    rows: list[dict[str, Any]] = [{"prompt": f"red {noun}", "task": "text", "max_tokens": 2 + i % 9}
                                  for i, noun in enumerate(NOUNS[: args.company])]  # fmt: skip
    rows += [{"prompt": f"{colour} heart"} for colour in COLOURS[: args.company // 2]]
    rows += [{"html": page, "max_tokens": 4, "n": 2}, {"prompt": "dog face", "guidance": 2.0}]
    if args.diffusion:
        rows = [{**row, "decoder": "diffusion", "steps": 4} for row in rows]
    rows = [{**row, "id": str(place)} for place, row in enumerate(rows)]
    usual = SampleJob(rows_of(base / "rows.jsonl", 0, rows), base / "first", args.model, "cpu", seed=1)
    backwards = rows_of(base / "backwards.jsonl", 0, rows[::-1])
    one = replace(usual, options=GenerateOptions(batch_size=1))
    sampling.run(one)
    first = _named(one.output)
    found: dict[str, Any] = {"outputs": len(first), "threads": torch.get_num_threads()}
    for size, shards, processes, path in (
        (4, 1, 1, usual.prompts), (16, 1, 1, usual.prompts), (1, 3, 1, usual.prompts), (16, 2, 1, usual.prompts),
        (4, 1, 2, usual.prompts), (16, 1, 1, backwards),
    ):  # fmt: skip
        name = f"batch {size}, {shards} shards, {processes} processes{', backwards' * (path == backwards)}"
        job = replace(usual, output=base / name, prompts=path, options=GenerateOptions(batch_size=size))
        if processes > 1:
            run_processes(job, How(), processes)
        else:
            for index in reversed(range(shards)):
                sampling.run(job, How(shard=(index, shards)))
        merge(job.output)
        made = _named(job.output)
        found[name] = sum(made.get(key) != each for key, each in first.items()) + len(
            made.keys() - first.keys()
        )
        print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    return found


def _named(folder: Path) -> Mapping[tuple[str, int], tuple[str, float]]:
    lines = read_lines(folder).values()
    return {(each["id"], each["index"]): (each["sha256"], each.get("logprob", 0)) for each in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="checkpoints/pictures")
    parser.add_argument("--part", default="kill,speed,company")
    parser.add_argument("--rows", type=int, default=400, help="rows of the runs that are killed")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--company", type=int, default=12)
    parser.add_argument(
        "--diffusion", action="store_true", help="all rows of company by the diffusion decoder"
    )
    args = parser.parse_args()
    parts = {"kill": kill, "speed": speed, "company": company}
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    for name in args.part.split(","):
        with tempfile.TemporaryDirectory() as base:
            print(json.dumps({name: parts[name](args, Path(base))}, indent=1), flush=True)


if __name__ == "__main__":
    main()
