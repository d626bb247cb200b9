"""Engines of others on two workers, one of which is killed: nothing lost or doubled, and what our own runner makes.

Each needs its extra; `make test-engines` installs them and runs this file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the extra web is not installed")
from cm3kit.web.runner import prepare
from cm3kit.web.sources import SourceOptions

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli"), str(ROOT / "tokenizers")]),
    "OMP_NUM_THREADS": "1",
}
PAGES, PIECE = 240, 10
DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from cm3kit.web.datatrove import PrepareParts
from cm3kit.web.sources import SourceOptions
if __name__ == "__main__":
    place, output = sys.argv[1:]
    block = PrepareParts(place, output, options=SourceOptions(pages=10))
    LocalPipelineExecutor([block], tasks=4, workers=2, logging_dir=output + "-logs").run()
"""
RAY = """
import sys
from pathlib import Path
import ray
from cm3kit.web.ray import prepare
from cm3kit.web.sources import SourceOptions
if __name__ == "__main__":
    place, output = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    prepare(place, Path(output), options=SourceOptions(pages=10))
"""


def needs(name: str) -> pytest.MarkDecorator:
    """Skip without a package."""
    return pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"the extra {name} is not installed"
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages long enough for a kill to fall among them."""
    folder = tmp_path_factory.mktemp("site")
    for number in range(PAGES):
        words = "".join(
            f"<p>Paragraph {line} of page {number} tells of {number * line} apples.</p>"
            for line in range(300)
        )
        (folder / f"{number:03}.html").write_text(f"<h1>Page {number}</h1>{words}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def expected(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the built-in runner makes."""
    output = tmp_path_factory.mktemp("runner") / "out"
    prepare(str(site), output, options=SourceOptions(pages=PIECE))
    return parts(output)


def parts(folder: Path) -> dict[str, bytes]:
    """Every file of prepared data that holds records or pictures."""
    found = [path for name in ("parts", "pictures") for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def children(parent: int) -> list[tuple[int, str]]:
    """Processes below one, with what they are called, by /proc."""
    parents: dict[int, tuple[int, str]] = {}
    for each in Path("/proc").iterdir():
        try:
            stat = (each / "stat").read_text() if each.name.isdecimal() else ""
            name = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if stat:
            parents[int(each.name)] = (int(stat.rpartition(")")[2].split()[1]), name)
    below = {parent}
    while more := {pid for pid, (above, _) in parents.items() if above in below and pid not in below}:
        below |= more
    return [(pid, parents[pid][1]) for pid in sorted(below - {parent})]


def run_with_a_kill(
    command: list[str], output: Path, worker: Callable[[str], bool], last: int = signal.SIGKILL
) -> tuple[int, int]:
    """Run, kill one worker after two parts, give the rest a minute, and end it; parts so far, and workers killed."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    killed, deadline = 0, time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        made = len(list(output.glob("parts/*")))
        if made >= 2 and not killed:
            for pid, name in children(process.pid):
                if worker(name):
                    os.kill(pid, signal.SIGKILL)
                    killed, deadline = 1, time.monotonic() + 60
                    break
        time.sleep(0.02)
    if process.poll() is None:  # a pool that waits for its dead for ever
        os.killpg(process.pid, last)
    process.wait(60)
    return len(list(output.glob("parts/*"))), killed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "worker"),
    [
        pytest.param(DATATROVE, lambda name: "fork" in name, id="datatrove", marks=needs("datatrove")),
        pytest.param(RAY, lambda name: name.startswith("ray::"), id="ray", marks=needs("ray")),
    ],
)
def test_a_worker_that_is_killed_loses_and_doubles_nothing(
    script: str, worker: Callable[[str], bool], site: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    program, output = tmp_path / "program.py", tmp_path / "out"
    program.write_text(script)
    command = [sys.executable, str(program), str(site), str(output)]
    made, killed = run_with_a_kill(command, output, worker)
    assert killed == 1, f"{made} parts, and no worker was found to kill"
    assert all(parts(output)[name] == expected[name] for name in parts(output) if name in expected)
    again = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert parts(output) == expected and len(expected) >= PAGES // PIECE


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / "checkpoints/pictures/model_index.json").is_file(), reason="no checkpoints/pictures"
)
def test_rows_under_a_launcher_are_those_of_one_process(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "red apple", "id": "{number}"}}\n' for number in range(4)))
    sample = ["-m", "cm3kit_cli", "sample", "run", str(rows), "--seed", "1", "-q", "--device", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    for name, start in (("one", [sys.executable]), ("two", launcher)):
        done = subprocess.run(
            [*start, *sample, "-o", str(tmp_path / name)],
            cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    def made(folder: Path) -> dict[str, str]:
        lines = [
            json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()
        ]
        assert len({line["id"] for line in lines}) == len(lines) == 4
        return {line["id"]: line["sha256"] for line in lines}

    assert made(tmp_path / "one") == made(tmp_path / "two")
