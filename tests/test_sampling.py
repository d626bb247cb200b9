"""Sampling into a folder: each row once whatever happens, and the same whatever is sampled beside it."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import toy_decoder, toy_image, toy_text, zebras

import cm3kit
from cm3kit.batch import commands, processes, store
from cm3kit.batch.choice import Likelihood, Selector
from cm3kit.batch.export import export
from cm3kit.batch.job import How, SampleJob, keys, seed_of
from cm3kit.batch.manage import contents, merge, status
from cm3kit.batch.processes import launched, part, run_processes
from cm3kit.batch.ray import Sample
from cm3kit.batch.rows import read_rows
from cm3kit.batch.run import run
from cm3kit.batch.store import read_lines
from cm3kit.batch.work import GenerateJob, Where
from cm3kit.claims import claim, overlap
from cm3kit.decoders.kernels import TILE, _packed, in_tiles
from cm3kit.decoders.settings import DecodeConfig
from cm3kit.fill.batching import Order
from cm3kit.fill.defaults import Defaults
from cm3kit.fill.folder import assemble
from cm3kit.fill.kit import Filled, GenerateOptions, Kit
from cm3kit.fill.prompts import Prompt
from cm3kit_cli.main import run as command
from cm3kit_tokenizers import Cm3kitError, ConfigError, DataError, ModelError, OutputError, Page
from cm3kit_tokenizers.document import Text

SAMPLES = Path(__file__).parents[1] / "samples"
WORDS = "a red apple on the table and a green pear beside it, so they say in the big book of fruit"
SHORT = GenerateOptions(max_tokens=4)
PAGE = "<p>a <mask> b</p><img alt='<mask>' src='<mask>'>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    parts = tmp_path_factory.mktemp("parts")
    toy_image(parts / "image", resolution=8, channels=(16, 16))
    toy_decoder(parts / "decoder", toy_text(parts / "text", WORDS, 290))
    small = DecodeConfig(batch_size=3)
    defaults = Defaults(window=160, image=small, text=small, decoders=("cm3", "diffusion"))
    return assemble(parts / "toy", parts / "text", parts / "image", parts / "decoder", defaults, "# Toy\n")


@pytest.fixture(scope="module")
def kit(folder: Path) -> Kit:
    return cm3kit.load(folder, device="cpu")


@pytest.fixture(autouse=True)
def loaded_once(kit: Kit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cm3kit, "load", lambda name=None, device="auto": kit)


def mixed() -> list[dict[str, Any]]:
    """Rows of both decoders, of all lengths, with settings of their own and pages of several gaps."""
    words = ["red apple", "green pear", "a big book of fruit on the table", "x"]
    rows: list[dict[str, Any]] = [{"prompt": words[i % 4], "max_tokens": 2 + i} for i in range(6)]
    rows += [{"prompt": words[i], "task": "image", "guidance": 1 + i} for i in range(3)]
    rows += [{"html": PAGE, "max_tokens": 3 + i, "n": 2} for i in range(2)]
    rows += [{"prompt": words[i], "decoder": "diffusion", "steps": 2 + i} for i in range(3)]
    rows += [{"html": PAGE, "decoder": "diffusion", "max_tokens": 4}, {"prompt": "", "task": "pair"}]
    rows += [{"prompt": "fruit", "task": "document", "max_tokens": 30}]
    return [{**row, "id": f"r{place}"} for place, row in enumerate(rows)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def job_of(path: Path, output: Path, folder: Path, **changes: Any) -> SampleJob:
    return replace(SampleJob(path, output, str(folder), "cpu", "text", seed=3, options=SHORT), **changes)


def lines(output: Path) -> list[str]:
    return sorted(json.dumps(each, sort_keys=True) for each in read_lines(output).values())


def verify_whole(output: Path, count: int) -> None:
    """Every output once, its file as the line says, and no file besides."""
    raw = [json.loads(line) for path in store.manifests(output) for line in path.read_text().splitlines()]
    assert len(raw) == len({(each["row"], each["index"]) for each in raw}) == count
    found = list(contents(output))
    assert all(content is not None for _, _, content in found)
    files = {str(path.relative_to(output)) for path in (output / "files").rglob("*") if path.is_file()}
    assert files == {line["path"] for _, line, _ in found}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, kit: Kit, folder: Path) -> Path:
    """The rows of `mixed`, sampled in one go."""
    base = tmp_path_factory.mktemp("straight")
    job = job_of(write(base / "rows.jsonl", mixed()), base / "out", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cm3kit, "load", lambda name=None, device="auto": kit)
        found = run(job)
    assert (found["done"], found["failed"], found["missing"]) == (19, 0, 0)
    return job.output


@pytest.mark.parametrize("size", [1, 4, 16])
def test_a_row_is_the_same_at_any_batch_size(size: int, straight: Path, folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", mixed()[::-1] if size == 4 else mixed())
    options = replace(SHORT, batch_size=size)
    run(job_of(path, tmp_path / "out", folder, options=options))
    known = {(each["id"], each["index"]): each for each in read_lines(straight).values()}
    for made in read_lines(tmp_path / "out").values():
        other = known[made["id"], made["index"]]
        assert (made["sha256"], made.get("logprob")) == (other["sha256"], other.get("logprob"))
    verify_whole(tmp_path / "out", 19)


def test_shards_merge_into_the_run_in_one_go(straight: Path, folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", mixed())
    job = job_of(path, tmp_path / "out", folder)
    counts = [run(job, How(shard=(index, 3)))["outputs"] for index in (2, 0, 1)]
    assert sum(counts) == 19 and len(store.manifests(job.output)) == 3
    elsewhere = replace(job, output=tmp_path / "elsewhere")
    run(elsewhere, How(shard=(0, 2)))
    merge(job.output)
    merge(straight)
    text = (job.output / "manifest.jsonl").read_bytes()
    assert text == (straight / "manifest.jsonl").read_bytes()
    verify_whole(job.output, 19)
    run(elsewhere, How(shard=(3, 4)))
    (tmp_path / "last").mkdir()
    last = replace(job, output=tmp_path / "last/out")
    run(last, How(shard=(1, 4)))
    assert merge(last.output, (elsewhere.output,))["missing"] == 0
    assert (last.output / "manifest.jsonl").read_bytes() == text
    verify_whole(last.output, 19)
    with pytest.raises(ConfigError, match="another seed"):
        run(replace(job, seed=4))


def test_results_are_those_of_generate_and_infill(kit: Kit) -> None:
    options = GenerateOptions(max_tokens=5)
    page = Page.parse(PAGE.encode())
    orders = [Order("red apple", "text", 5, index, options) for index in range(3)]
    orders += [Order("", "document", 5, index, options, page) for index in range(2)]
    made = dict(kit.sample([replace(each, key=place) for place, each in enumerate(orders)]))
    found = {order.key: result for order, result in made.items()}
    texts = [found[place].text for place in range(3)]  # type: ignore[union-attr]
    assert texts == [
        each.text for each in kit.generate("red apple", task="text", n=3, seed=5, options=options)
    ]
    filled = [found[place] for place in (3, 4)]
    assert [each.html for each in filled if isinstance(each, Filled)] == [
        each.html for each in kit.infill(page, variants=2, seed=5, options=options)
    ]


def test_pictures_do_not_depend_on_the_number_of_threads(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    real, threads = kit.pictures, []

    def spy(codes: Any) -> Any:
        threads.append(torch.get_num_threads())
        return real(codes)

    monkeypatch.setattr(kit, "pictures", spy)
    torch.set_num_threads(2)
    try:
        ((_, made),) = kit.sample([Order("red apple", seed=2)])
        assert threads == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    ((_, again),) = kit.sample([Order("red apple", seed=2)])
    assert made.image.tobytes() == again.image.tobytes()  # type: ignore[union-attr]


def test_products_in_tiles_do_not_depend_on_the_number_of_rows() -> None:
    rng = torch.Generator().manual_seed(1)
    weight, x = torch.randn(33, 20, generator=rng), torch.randn(2 * TILE + 3, 20, generator=rng)
    product = in_tiles(_packed(weight, TILE))
    assert torch.allclose(product(x), x @ weight.T, atol=1e-5)
    assert all(torch.equal(product(x[:m]), product(x)[:m]) for m in range(1, len(x)))


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


STEPS = [(os, name) for name in ("fsync", "replace", "write", "open", "ftruncate")]


def test_a_run_that_dies_anywhere_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("red apple\ngreen pear\n" + "apple " * 300 + "\na book\n")
    monkeypatch.setattr("cm3kit.batch.run.GROUP", 2)
    run(job_of(path, tmp_path / "whole", folder))
    job, left, deaths = job_of(path, tmp_path / "out", folder), 0, 0
    while True:
        shutil.rmtree(job.output, ignore_errors=True)
        with monkeypatch.context() as patch:
            dies = _die_at(patch, left)
            try:
                run(job)
            except Killed:
                deaths += 1
            over = not dies()
        run(job)
        assert lines(job.output) == lines(tmp_path / "whole")
        verify_whole_with_errors(job.output, 4)
        if over:
            break
        left += 1
    assert deaths == left > 20


def verify_whole_with_errors(output: Path, count: int) -> None:
    raw = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert len(raw) == count
    assert not [path for path in output.rglob(".tmp-*")]


def _die_at(patch: pytest.MonkeyPatch, left: int) -> Callable[[], bool]:
    """Die before the call of the system number `left`, and at each one after it; a write is half done."""
    seen = 0

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen > left:
                if name == "write" and seen == left + 1:
                    real(given[0], given[1][: len(given[1]) // 2])
                raise Killed
            return real(*given, **named)

        return call

    for module, name in STEPS:
        patch.setattr(module, name, wrap(name, getattr(module, name)))
    return lambda: seen > left


def _sample(job: SampleJob, folder: Path) -> None:
    torch.set_num_threads(1)
    kit = cm3kit.load(folder, device="cpu")
    cm3kit.load = lambda name=None, device="auto": kit  # type: ignore[assignment]
    run(job)


def test_a_killed_process_leaves_its_rows_to_the_next(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("".join(f"apple {number}\n" for number in range(40)))
    job = job_of(path, tmp_path / "out", folder)
    process = multiprocessing.get_context("fork").Process(target=_sample, args=(job, folder))
    process.start()
    manifest = job.output / "manifest.jsonl"
    while process.is_alive() and not (manifest.is_file() and manifest.stat().st_size):
        process.join(0.005)
    if process.pid and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert run(job)["done"] == 40
    verify_whole(job.output, 40)
    run(replace(job, output=tmp_path / "whole"))
    assert lines(job.output) == lines(tmp_path / "whole")


BAD = b"""{"prompt": "red apple"}
{"prompt": "red apple", "id": "0"}
{"prompt": 3}
{"prompt": "x", "temprature": 1}
{"prompt": "x", "temperature": -1}
{"prompt": "x", "temperature": "warm"}
{"prompt": "x", "seed": -4}
{"prompt": "x", "seed": 9223372036854775808}
{"prompt": "x", "n": 0}
{"prompt": "x", "task": "song"}
{"prompt": "x", "parallel": true, "decoder": "diffusion"}
{"prompt": "x", "sampler": "lada", "decoder": "diffusion"}
{"prompt": ""}
not json
[1, 2]
{"prompt": "\xff"}
{"page": "missing.html"}
{"page": "plain.html"}
{"html": "<p><mask></p>", "page": "plain.html"}
{"html": "<script><mask></script>"}
{"html": "<p><mask></p>", "select": ["]["]}
{"prompt": "nothing.png", "task": "caption"}
{"prompt": "rows.jsonl", "task": "caption"}
{"prompt": "nul \\u0000 and \\ud800 lone", "task": "text"}
{"prompt": "green pear", "meta": {"mine": [1, 2]}}
"""


def test_bad_rows_are_told_and_change_no_other(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.html").write_text("<p>Nothing is missing.</p>")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(BAD + b'{"prompt": "' + b"apple " * 20_000 + b'"}\n')
    job = job_of(path, tmp_path / "out", folder)
    found = run(job)
    made = read_lines(job.output)
    good = {key[0] for key, line in made.items() if line["status"] == "ok"}
    assert found["missing"] == 0 and found["failed"] == len(made) - len(good) and len(made) == 26
    assert {0, 24} <= good <= {0, 23, 24}
    codes = {key[0]: line["code"] for key, line in made.items() if line["status"] == "error"}
    assert codes[1] == codes[2] == codes[3] == codes[13] == codes[15] == "bad_data"
    assert (codes[16], codes[17], codes[21], codes[25]) == ("no_file", "no_mask", "no_file", "too_long")
    assert "did you mean 'temperature'" in made[3, 0]["error"] and made[24, 0]["meta"] == {"mine": [1, 2]}
    assert all(
        "\n" not in line["error"] and len(line["error"]) <= 500
        for key, line in made.items()
        if key[0] in codes
    )
    alone = job_of(write(tmp_path / "good.jsonl", [{"prompt": "red apple"}]), tmp_path / "alone", folder)
    run(alone)
    assert read_lines(alone.output)[0, 0]["sha256"] == made[0, 0]["sha256"]
    assert status(job.output)["failures"]["bad_data"] >= 5
    again = run(job, How(retry_errors=True))
    assert again["failed"] == found["failed"] and lines(job.output) == lines(job.output)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_rows_come_from_all_kinds_of_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    rows = [{"prompt": "red, apple"}, {"prompt": "pear"}]
    if suffix != ".txt":
        rows[1] |= {"seed": 7, "temperature": 0.5, "decoder": "cm3", "id": "b"}  # type: ignore[dict-item]
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        import pyarrow.parquet as parquet

        parquet.write_table(
            pyarrow.Table.from_pylist([{**dict.fromkeys(rows[1]), **row} for row in rows]), path
        )
    elif suffix == ".csv":
        path.write_text('\ufeffprompt,seed,temperature,decoder,id\n"red, apple",,,,\npear,7,0.5,cm3,b\n')
    elif suffix == ".jsonl":
        write(path, rows)
    else:
        path.write_text("red, apple\n\n  pear \n")
    first, second = read_rows(path).rows
    assert (first.asked.prompt, first.id, first.options, first.error) == ("red, apple", "0", None, None)
    assert second.asked.prompt == "pear" and second.error is None
    if suffix != ".txt":
        assert (second.id, second.asked.seed) == ("b", 7)
        assert second.options == {"temperature": 0.5, "decoder": "cm3"}


def test_files_that_hold_no_rows_are_refused(tmp_path: Path) -> None:
    for name, content, code in (
        ("a.txt", b"\n\n", "empty_file"), ("a.md", b"x", "bad_value"), ("a.csv", b"promt\nx\n", "bad_data"),
        ("b.csv", b'prompt\n"x', "bad_data"), ("a.parquet", b"PAR1", "bad_data"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Cm3kitError) as caught:
            read_rows(tmp_path / name)
        assert caught.value.code == code
    with pytest.raises(DataError, match="does not exist"):
        read_rows(tmp_path / "none.txt")


def test_seeds_follow_from_run_and_id() -> None:
    seeds = {seed_of(run_seed, id) for run_seed in range(20) for id in ("a", "b", "1")}
    assert len(seeds) == 60 and max(seeds) < 2**53 and seed_of(1, "a") == seed_of(1, "a")


def _hold(folder: Path, shard: tuple[int, int], told: Any, wait: Any) -> None:
    with claim(folder, shard):
        told.set()
        wait.wait(20)


def test_two_runs_in_one_folder_do_not_meet(folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    told, wait = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, (1, 2), told, wait))
    holder.start()
    try:
        assert told.wait(20)
        for shard in ((0, 1), (1, 2), (3, 4), (0, 3)):
            with pytest.raises(OutputError, match="running shard 1/2") as caught, claim(tmp_path, shard):
                pass
            assert caught.value.code == "in_use"
        for shard in ((0, 2), (2, 4)):
            with claim(tmp_path, shard):
                pass
        wait.set()
    finally:
        wait.set()
        holder.join()
    with claim(tmp_path, (0, 1)):
        pass


def test_shards_overlap_where_they_have_a_row_in_common() -> None:
    for first in [(i, n) for n in range(1, 7) for i in range(n)]:
        for second in [(i, n) for n in range(1, 7) for i in range(n)]:
            common = set(range(first[0], 400, first[1])) & set(range(second[0], 400, second[1]))
            assert overlap(first, second) == bool(common)


def test_launchers_and_processes_split_a_shard() -> None:
    parts = [part((1, 3), index, 4) for index in range(4)]
    assert sorted(row for i, n in parts for row in range(i, 120, n)) == list(range(1, 120, 3))
    assert launched((0, 1), "cpu", {}) == ((0, 1), "cpu")
    assert launched((1, 2), "cpu", {"RANK": "1", "WORLD_SIZE": "2"}) == ((3, 4), "cpu")
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        launched((0, 1), "cpu", {"RANK": "x", "WORLD_SIZE": "2"})


def test_processes_share_the_rows(
    straight: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = multiprocessing.get_context("fork")  # what the parent has loaded need not be loaded again
    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda kind: fork)
    job = job_of(straight.parent / "rows.jsonl", tmp_path / "out", folder)
    said: list[str] = []
    with monkeypatch.context() as patch:
        real = processes.run
        patch.setattr(processes, "run", lambda job, how, watch: (
            os._exit(9) if how.shard == (1, 2) else real(job, how, watch)
        ))  # fmt: skip
        found = run_processes(job, How(), 2, warn=said.append)
    assert found["missing"] > 0 and found["done"] > 0 and "ended with 9" in said[-1]
    counts: list[tuple[int, int]] = []
    found = run_processes(job, How(), 3, watch=lambda done, total, note: counts.append((done, total)))
    assert (found["done"], found["missing"]) == (19, 0) and counts
    assert lines(job.output) == lines(straight)
    verify_whole(job.output, 19)
    monkeypatch.setattr(
        processes, "run", lambda *given: (_ for _ in ()).throw(OutputError("full", code="no_space"))
    )
    with pytest.raises(Cm3kitError, match="full") as caught:
        run_processes(job, How(), 2)
    assert caught.value.code == "no_space"


def test_ray_batches_are_rows_of_a_run(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "id": id} for prompt, id in (("red apple", "a"), ("", "b"), ("green pear", "c"))
    ]
    job = job_of(write(tmp_path / "rows.jsonl", rows), tmp_path / "out", folder)
    run(job)
    batch = {name: np.array([row[name] for row in rows], object) for name in ("prompt", "id")}
    made = Sample(str(folder), "text", 3, {"max_tokens": 4}, "cpu")(batch)
    known = {line["id"]: content for _, line, content in contents(job.output)}
    assert list(made["id"]) == ["a", "b", "c"] and list(made["content"]) == [known["a"], b"", known["c"]]
    assert made["error"][1].startswith("the prompt is empty") and list(made["suffix"]) == [".txt", "", ".txt"]
    with pytest.raises(ConfigError):
        Sample(str(folder), "infill")


def test_the_ray_sample_runs(tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="ray is not installed")
    root = SAMPLES.parent
    paths = os.pathsep.join(map(str, (root, root / "tokenizers")))
    command_line = [sys.executable, "samples/sample_ray.py", "samples/prompts.txt", str(tmp_path / "out")]
    done = subprocess.run(command_line, cwd=root, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert done.returncode == 0 and len(list((tmp_path / "out").glob("*.png"))) == 6


def test_the_sample_scripts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "cm3kit").write_text(
        '#!/bin/sh\necho "$@" >> log\n[ "$2" = run ] && [ "$(grep -c " run " log)" -lt 2 ] && exit 3\nexit 0\n'
    )
    (tmp_path / "cm3kit").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    slurm = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "16"}
    for name, extra in (("sample.sh", {}), ("sample_slurm.sh", slurm)):
        command_line = ["bash", str(SAMPLES / name), "rows.jsonl", "out", "-n", "2"]
        done = subprocess.run(command_line, cwd=tmp_path, env=environment | extra, check=False)
        assert done.returncode == 0
    said = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[1] for line in said] == ["run", "run", "merge", "status", "run"]
    assert said[0].endswith("-o out --seed 1 -n 2") and "--shard 4/16" in said[-1]
    if not (SAMPLES.parent / "checkpoints/pictures/model_index.json").is_file():
        pytest.skip("checkpoints/pictures is not in this checkout")
    script = runpy.run_path(str(SAMPLES / "sample_rows.py"))
    monkeypatch.setattr("cm3kit.batch.run.BATCH_SIZE", 3)
    assert script["main"](SAMPLES / "rows.jsonl", tmp_path / "out") == 0
    assert "8 of 8" in capsys.readouterr().out


def test_lost_files_are_made_again_and_changed_ones_are_found(
    straight: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(straight, output)
    job = job_of(straight.parent / "rows.jsonl", output, folder)
    lost, changed = [line["path"] for _, line, _ in contents(output)][:2]
    (output / lost).unlink()
    (output / changed).write_bytes(b"other")
    assert status(output, verify=True)["damaged"] == [lost, changed]
    said: list[str] = []
    assert run(job, warn=said.append)["done"] == 19 and "1 files" in said[-1]
    assert status(output, verify=True)["damaged"] == [changed]
    with pytest.raises(DataError, match="damaged"):
        export(output, tmp_path / "new", "folder")
    assert not (tmp_path / "new").exists()


def test_a_manifest_cannot_point_outside(straight: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(straight, output)
    (tmp_path / "secret").write_bytes(b"x")
    line = {**next(iter(read_lines(output).values())), "row": 0, "index": 0, "path": "../secret"}
    line["sha256"] = __import__("hashlib").sha256(b"x").hexdigest()
    with (output / "manifest.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    for look in (lambda: status(output, verify=True), lambda: export(output, tmp_path / "new", "folder")):
        with pytest.raises(DataError, match="not its own"):
            look()


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_exports_hold_every_output(form: str, straight: Path, tmp_path: Path) -> None:
    known = {(key[0], key[1]): content for key, _, content in contents(straight)}
    target = tmp_path / form
    assert export(straight, target, form, per_shard=8)["outputs"] == len(known) == 19
    found: dict[tuple[int, int], bytes] = {}
    if form == "folder":
        for line in map(json.loads, (target / "manifest.jsonl").read_text().splitlines()):
            found[line["row"], line["index"]] = (target / line["path"]).read_bytes()
    elif form == "webdataset":
        tars = sorted(target.glob("shard-*.tar"))
        assert len(tars) == 3
        for path in tars:
            with tarfile.open(path) as archive:
                members = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
            for name in [name for name in members if name.endswith(".json")]:
                line = json.loads(members[name])
                stem = name.removesuffix(".json")
                found[line["row"], line["index"]] = members[stem + Path(line["path"]).suffix]
    else:
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        for path in sorted(target.glob("*.parquet")):
            for row in parquet.read_table(path).to_pylist():
                found[row["row"], row["index"]] = row["content"]
    assert found == known
    with pytest.raises(OutputError, match="exists"):
        export(straight, target, form)


def test_pictures_carry_how_they_were_made(folder: Path, tmp_path: Path, kit: Kit) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "red apple", "id": "a", "temperature": 0.9}])
    job = job_of(path, tmp_path / "out", folder, task="image")
    run(job)
    ((_, line, content),) = contents(job.output)
    assert content is not None
    recipe = json.loads(Image.open(io.BytesIO(content)).info["cm3kit"])
    options = GenerateOptions(**recipe["options"])
    again = kit.generate(recipe["prompt"], task=recipe["task"], seed=recipe["seed"], options=options)
    assert again[recipe["index"]].image.tobytes() == Image.open(io.BytesIO(content)).tobytes()  # type: ignore[union-attr]
    assert recipe["id"] == "a" and line["seed"] == recipe["seed"] == seed_of(3, "a")
    hidden = replace(job, output=tmp_path / "hidden", prompt_metadata=False)
    run(hidden)
    assert not any(b"red apple" in path.read_bytes() for path in hidden.output.rglob("*") if path.is_file())


def brute(kit: Kit, prompt: list[int], answer: list[int]) -> float:
    """log p of an answer behind a prompt, by the module of transformers itself."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = kit.backbone(ids).logits[0, :, : len(kit.vocab)].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + place, id]) for place, id in enumerate(answer))


def test_likelihood_is_that_of_the_model_both_ways(kit: Kit) -> None:
    made = kit.generate("red apple", seed=4)[0]
    codes = [kit.vocab.image.start + code for code in made.codes]
    judged = Likelihood(kit, "")(Order("red  apple"), made)
    words = [each for each in kit.tokenizer.encode([Text("red apple")]) if isinstance(each, int)]
    piece = kit.vocab.markup_id
    head = [kit.vocab.eod, piece("<img"), piece(' alt="'), *words, piece('"'), piece(' src="')]
    assert judged.parts["picture_given_words"] == pytest.approx(brute(kit, head, codes), abs=1e-3)
    assert judged.parts["picture_given_words"] == pytest.approx(made.logprob, abs=1e-3)
    hidden = [
        kit.vocab.eod,
        piece("<img"),
        piece(' alt="'),
        kit.vocab.sentinel(0),
        piece('"'),
        piece(' src="'),
    ]
    prompt = [*hidden, *codes, piece('"'), piece(">"), kit.vocab.eod, kit.vocab.sentinel(0)]
    wanted = brute(kit, prompt, [*words, kit.vocab.eoss])
    assert judged.parts["words_given_picture"] == pytest.approx(wanted, abs=1e-3)
    assert judged.value == sum(judged.parts.values())


@pytest.mark.parametrize(
    ("score", "task"),
    [("likelihood", "image"), ("likelihood", "infill"), ("ends", "text"), ("ends", "infill")],
)
def test_the_best_of_several_is_kept(score: str, task: str, kit: Kit, folder: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"html": PAGE} if task == "infill" else {"prompt": "red apple"}
    job = job_of(write(tmp_path / "rows.jsonl", [{**asked, "n": 2, "seed": 8}, {"prompt": ""}]),
                 tmp_path / "out", folder, task=task, best_of=3, score=score)  # fmt: skip
    assert run(job)["failed"] == 1
    page, selector = Page.parse(PAGE.encode()), Selector(kit, score)
    for key, line, content in contents(job.output):
        made: Any = kit.infill(page, variants=6, seed=8, options=SHORT) if task == "infill" else (
            kit.generate("red apple", task=task, n=6, seed=8, options=SHORT)  # type: ignore[arg-type]
        )  # fmt: skip
        given = page if task == "infill" else None
        order = Order("red apple", "image" if task == "infill" else task, page=given)  # type: ignore[arg-type]
        mine = range(3 * key[1], 3 * key[1] + 3)
        best = max(mine, key=lambda place: selector.score(order, made[place]).value)
        assert (line["sample"], line["candidates"]) == (best, 3)
        assert task == "image" or content == (
            made[best].html if task == "infill" else f"{made[best].text}\n".encode()
        )
        assert line["score"] == pytest.approx(selector.score(order, made[best]).value, abs=1e-6)


def test_gaps_of_a_row_that_end_in_one_step_end_it_once(folder: Path, tmp_path: Path) -> None:
    page = "<p>a <mask></p><p>a <mask></p>"
    row = {"html": page, "parallel": True, "temperature": 0, "max_tokens": 1}
    job = job_of(write(tmp_path / "rows.jsonl", [row, row]), tmp_path / "out", folder)
    found = run(job)
    assert (found["done"], found["failed"]) == (2, 0)


def test_generate_keeps_the_best_as_sampling_does(kit: Kit, folder: Path, tmp_path: Path) -> None:
    where = Where(str(tmp_path / "best"), sheet=False)
    asked = GenerateJob((Prompt("red apple"), Prompt("pear", 8)), "image", 2, 8, SHORT, where, 3)
    found = commands.generate(str(folder), "cpu", asked)
    rows = write(
        tmp_path / "rows.jsonl",
        [{"prompt": "red apple", "n": 2, "seed": 8}, {"prompt": "pear", "n": 2, "seed": 8}],
    )
    job = job_of(rows, tmp_path / "out", folder, task="image", best_of=3, score="likelihood")
    run(job)
    lines = [line for _, line, _ in contents(job.output)]
    assert [each["index"] for each in found.samples] == [each["sample"] for each in lines]
    assert [each["score"] for each in found.samples] == [each["score"] for each in lines]
    assert {each["candidates"] for each in found.samples} == {3}
    for place, (each, path) in enumerate(zip(found.samples, found.paths, strict=True)):
        assert place % 2 * 3 <= each["index"] < place % 2 * 3 + 3
        (again,) = kit.generate(each["prompt"], seed=8, first=each["index"], options=SHORT)
        with Image.open(path) as picture:
            assert again.image is not None and picture.tobytes() == again.image.tobytes()
    told = json.loads((tmp_path / "best/run.json").read_text())
    assert (told["best_of"], told["score"]) == (3, "likelihood")
    with pytest.raises(ConfigError, match="use ends"):
        commands.generate(str(folder), "cpu", replace(asked, task="text"))
    with pytest.raises(ConfigError, match="--best-of 2"):
        commands.generate(str(folder), "cpu", replace(asked, score="ends", best_of=1))
    with pytest.raises(ConfigError, match="--best-of 2"):
        run(job_of(rows, tmp_path / "none", folder, task="image", score="ends"))


def test_scores_that_do_not_fit_are_refused(kit: Kit, folder: Path, tmp_path: Path) -> None:
    job = job_of(write(tmp_path / "rows.jsonl", [{"prompt": "x"}]), tmp_path / "out", folder, best_of=2)
    assert run(job)["failed"] == 1 and "use ends" in read_lines(job.output)[0, 0]["error"]
    with pytest.raises(ConfigError, match="known: clip, ends, likelihood"):
        Selector(kit, "beauty")
    with pytest.raises(ConfigError, match="names no folder"):
        Selector(kit, "clip:nowhere")
    (tmp_path / "clip").mkdir()
    with pytest.raises(ModelError, match="not a usable CLIP"):
        Selector(kit, f"clip:{tmp_path / 'clip'}")


def test_a_clip_model_of_the_user_judges(kit: Kit, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    (tmp_path / "vocab.json").write_text(
        json.dumps({each: place for place, each in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])})
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    side = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**side, "vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 53, "bos_token_id": 52},
        vision_config={**side, "image_size": 8, "patch_size": 4}, projection_dim=6,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
    pictures = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    for each in (model, tokenizer, pictures):
        each.save_pretrained(tmp_path)
    made = kit.generate("red apple", seed=4)[0]
    judged = Selector(kit, f"clip:{tmp_path}").score(Order("red apple"), made)
    with torch.no_grad():
        text = model.get_text_features(**tokenizer(["red apple"], return_tensors="pt"))
        image = model.get_image_features(**pictures([made.image], return_tensors="pt"))
    text, image = (getattr(each, "pooler_output", each) for each in (text, image))
    assert judged.value == pytest.approx(float(torch.cosine_similarity(text, image)), abs=1e-5)


def test_the_command_says_what_is_missing(folder: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("red apple\ngreen pear\na book\n")
    line = ["sample", "run", str(path), "-o", str(tmp_path / "out"), "-m", str(folder), "--task", "text"]
    line += ["--max-tokens", "3", "--device", "cpu"]
    assert command([*line, "--time-limit", "0"]) == 3
    assert command([*line, "--shard", "1/2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["done"] == 1
    assert command(["sample", "status", str(tmp_path / "out")]) == 3
    assert "1 of 3 outputs are there, 2 missing" in capsys.readouterr().out
    assert command([*line, "--batch-size", "2"]) == 0
    assert command([*line, "--no-resume"]) == 1 and "bad_config" in capsys.readouterr().err
    assert command(["sample", "merge", str(tmp_path / "out")]) == 0
    assert command(["sample", "status", str(tmp_path / "out"), "--verify"]) == 0
    assert command(["sample", "export", str(tmp_path / "out"), "-o", str(tmp_path / "new")]) == 0
    assert len(list((tmp_path / "new").glob("*.txt"))) == 3
    assert command([*line, "--traj", "x"]) == 2
    assert command(["sample", "status", str(tmp_path)]) == 1


def test_rows_whose_outputs_are_equal_say_so_in_the_manifest(
    kit: Kit, folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the run was interrupted, and in however many shards."""
    rows = [{"prompt": "red apple", "n": 3}, {"prompt": "pear", "n": 2, "temperature": 2.0, "max_tokens": 40}]
    rows += [{"prompt": "book"}, {"html": PAGE, "n": 2, "task": "infill"}]
    path, cold = write(tmp_path / "rows.jsonl", rows), GenerateOptions(max_tokens=3, temperature=0.0)
    found = run(job_of(path, tmp_path / "whole", folder, options=cold))
    assert (found["done"], found["warned"]) == (8, 5)
    made = read_lines(tmp_path / "whole")
    assert {key[0] for key, line in made.items() if line.get("warnings")} == {0, 3}
    assert made[0, 2]["warnings"][0].startswith("all 3 results are equal")
    parts = job_of(path, tmp_path / "parts", folder, options=cold)
    with monkeypatch.context() as patch:
        patch.setattr(
            "cm3kit.batch.equal.remarked", lambda lines, counts: []
        )  # as if it had died just before
        run(parts, How(shard=(0, 2)))
    run(parts, How(shard=(1, 2)))
    run(parts)
    for each in (parts.output, tmp_path / "whole"):
        assert merge(each)["warned"] == 5
    assert len({(each / "manifest.jsonl").read_bytes() for each in (parts.output, tmp_path / "whole")}) == 1
    assert command(["sample", "status", str(parts.output)]) == 0
    assert "8 of 8 outputs are there, 5 with warnings" in capsys.readouterr().out


def test_words_that_were_never_seen_are_told_in_the_manifest(
    kit: Kit, folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cm3kit.fill.remarks.unknown_words", zebras)
    rows = [{"prompt": "red zebra"}, {"prompt": "red apple"}, {"html": "<p>a zebra <mask></p>"}]
    path = write(tmp_path / "rows.jsonl", rows)
    line = [
        "sample",
        "run",
        str(path),
        "-m",
        str(folder),
        "--task",
        "text",
        "--max-tokens",
        "3",
        "--device",
        "cpu",
    ]
    assert command([*line, "-o", str(tmp_path / "out")]) == 0
    assert "3 of 3 outputs are there, 2 with warnings" in capsys.readouterr().err
    said = {key[0]: each.get("warnings") for key, each in read_lines(tmp_path / "out").items()}
    assert said[1] is None
    assert said[0] == said[2] == ["toy has never seen the words 'zebra': what it makes of them is a guess"]
    assert command([*line, "-o", str(tmp_path / "quiet"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_the_keys_of_shards_are_all_keys(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", mixed())
    job, rows = job_of(path, tmp_path / "out", folder), read_rows(path)
    shards: Iterator[tuple[int, int]] = (key for index in range(4) for key in keys(job, rows, (index, 4)))
    assert sorted(shards) == keys(job, rows, (0, 1))
