"""Checkpoints are whole or absent, whatever kills the writer."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cm3kit import publish
from cm3kit.publish import collect, load_state, newest, publishing, save_state, verify, write_atomic
from cm3kit.temporaries import sweep, temporary_file, temporary_folder
from cm3kit_tokenizers.errors import ConfigError, DataError, ModelError, OutputError

WRITER = """
import os, sys
from pathlib import Path
from cm3kit.publish import collect, newest, publishing
run = Path(sys.argv[1])
found = newest(run, warn=lambda line: sys.exit(line))
step = int(found.name[5:]) if found else 0
while True:
    step += 1
    with publishing(run / f"step-{step:08d}") as folder:
        for name in "abc":
            (folder / name).write_bytes(step.to_bytes(8, "big") * 8000)
    os.write(1, b"%d\\n" % step)
    collect(run, keep=2)
"""


def silent(line: str) -> None:
    raise AssertionError(line)


def make(run: Path, step: int) -> Path:
    target = run / f"step-{step:08d}"
    with publishing(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(bytes(range(256)) * 3)
        (folder / "state.json").write_text(json.dumps({"step": step}))
    return target


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(".tmp-*"))


def test_a_killed_writer_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    chance = random.Random(0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    latest, found_temporaries = 0, 0
    for _ in range(25):
        child = subprocess.Popen(
            [sys.executable, "-c", FAST_IMPORT + WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert child.stdout is not None
        first = child.stdout.readline()
        assert int(first) == latest + 1, "it did not go on from the newest"
        time.sleep(chance.uniform(0, 0.03))
        child.send_signal(signal.SIGKILL)
        told = [int(line) for line in (first, *child.stdout.readlines()) if line.endswith(b"\n")]
        child.wait()
        child.stdout.close()
        visible = sorted(tmp_path.glob("step-*"))
        assert [verify(folder) for folder in visible] == [None] * len(visible)
        found = newest(tmp_path, warn=silent)
        assert found is not None
        latest = int(found.name[5:])
        assert latest in {told[-1], told[-1] + 1}, "a step that was told is lost"
        found_temporaries += len(temporaries(tmp_path))
    assert found_temporaries > 0, "no kill ever hit the middle of a save"
    sweep(tmp_path)
    assert not temporaries(tmp_path)


# The writer needs no torch, and importing it 25 times would take longer than all the rest.
FAST_IMPORT = """
import sys, types
for name in ("torch", "safetensors", "safetensors.torch"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torch"].Tensor = object
sys.modules["safetensors"].SafetensorError = type("SafetensorError", (Exception,), {})
sys.modules["safetensors.torch"].load_file = sys.modules["safetensors.torch"].save_file = None
"""


class Failing:
    """Counts the calls that change the disk, and fails from call `at` on."""

    def __init__(self, at: int, number: int) -> None:
        self.at, self.number, self.calls = at, number, 0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls > self.at:
                raise OSError(self.number, os.strerror(self.number))
            return call(*arguments, **options)

        return wrapped


def shim(patch: pytest.MonkeyPatch, failing: Failing) -> None:
    for name in ("fsync", "rename", "replace", "mkdir", "link"):
        patch.setattr(os, name, failing.wrap(getattr(os, name)))
    real = io.open

    def opened(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = real(path, mode, *arguments, **options)
        if set(mode) & set("wax+"):
            return Wrapped(file, failing)
        return file

    patch.setattr(io, "open", opened)
    patch.setattr(builtins, "open", opened)


class Wrapped:
    """A file whose writes may fail."""

    def __init__(self, file: Any, failing: Failing) -> None:
        self.file, self.write = file, failing.wrap(file.write)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Wrapped:
        return self

    def __exit__(self, *details: object) -> None:
        self.file.close()


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "no_space"), (errno.EROFS, "cannot_write")])
def test_a_failure_at_any_call_leaves_nothing_behind(tmp_path: Path, number: int, code: str) -> None:
    make(tmp_path, 1)
    succeeded_at = None
    for at in range(40):
        with pytest.MonkeyPatch.context() as patch:
            shim(patch, Failing(at, number))
            try:
                make(tmp_path, 2)
                succeeded_at = at
                break
            except OutputError as error:
                assert error.code == code and "step-00000002" in str(error) and "\n" not in str(error)
        assert not temporaries(tmp_path)
        assert newest(tmp_path, warn=silent) is not None
        if (tmp_path / "step-00000002").exists():
            # Only the last call, the fsync of the parent, comes after the rename.
            assert verify(tmp_path / "step-00000002") is None
            os.rename(tmp_path / "step-00000002", tmp_path / "other")
    assert succeeded_at is not None and succeeded_at >= 9
    assert newest(tmp_path, warn=silent) == tmp_path / "step-00000002"


@pytest.mark.parametrize("force", [False, True])
def test_one_file_fails_at_any_call_without_a_trace(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "page.html"
    if force:
        path.write_bytes(b"old")
    for at in range(20):
        with pytest.MonkeyPatch.context() as patch:
            shim(patch, Failing(at, errno.ENOSPC))
            try:
                write_atomic(path, b"new", force)
                break
            except OutputError as error:
                assert error.code == "no_space" and "3 bytes" in str(error)
        assert not temporaries(tmp_path)
        if path.exists() and path.read_bytes() == b"new":
            path.write_bytes(b"old") if force else path.unlink()
        assert path.exists() is force
    assert at >= 3 and path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_other_failures_pass_through(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), publishing(tmp_path / "final") as folder:
        (folder / "weights").write_bytes(b"1")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_under_safetensors_is_named(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OutputError, match="cannot_write"), publishing(tmp_path / "final") as folder:
            save_state(folder, {"a": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_every_damage_is_found(tmp_path: Path) -> None:
    folder, chance = make(tmp_path, 1), random.Random(1)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"weights", "state.json", "manifest.json"}
    for path in files:
        clean = path.read_bytes()
        for _ in range(150):
            bit = chance.randrange(8 * len(clean))
            broken = bytearray(clean)
            broken[bit // 8] ^= 1 << bit % 8
            path.write_bytes(broken)
            wrong = verify(folder)
            assert wrong is not None and "\n" not in wrong, (path, bit)
        for length in {0, 1, len(clean) - 1, *(chance.randrange(len(clean)) for _ in range(40))}:
            path.write_bytes(clean[:length])
            assert verify(folder) is not None, (path, length)
        path.write_bytes(clean + b"\0")
        assert verify(folder) is not None
        path.unlink()
        assert verify(folder) is not None
        path.write_bytes(clean)
        assert verify(folder) is None


@pytest.mark.parametrize("name", ["../step-00000002/state.json", "/etc/hostname"])
def test_a_manifest_cannot_point_outside(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path, 1)
    make(tmp_path, 2)
    (folder / "manifest.json").write_bytes(publish._manifest_bytes({name: {"sha256": "0", "size": 1}}))
    assert "outside" in (verify(folder) or "")


def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        make(tmp_path, step)
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-00000011" / "state.json").write_text("{}")
    (tmp_path / "step-00000010" / "sub" / "weights").unlink()
    lines: list[str] = []
    assert newest(tmp_path, warn=lines.append) == tmp_path / "step-00000009"
    assert len(lines) == 2 and "step-00000011" in lines[0] and "step-00000010" in lines[1]
    assert newest(tmp_path / "absent", warn=silent) is None


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_collect_keeps_k_and_the_newest_whole_one(tmp_path: Path, keep: int) -> None:
    for step in range(1, 5):
        make(tmp_path, step)
        collect(tmp_path, keep)
        wanted = [f"step-{kept:08d}" for kept in range(max(1, step - keep + 1), step + 1)]
        assert sorted(path.name for path in tmp_path.iterdir()) == wanted
    for path in sorted(tmp_path.iterdir())[1:]:
        (path / "state.json").unlink()
    whole = newest(tmp_path, warn=lambda line: None)
    for step in (10, 11, 12, 13, 14, 15):
        (tmp_path / f"step-{step:08d}").mkdir()
        collect(tmp_path, keep)
    assert whole is not None and newest(tmp_path, warn=lambda line: None) == whole


def test_collect_without_a_whole_checkpoint_removes_none(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (make(tmp_path, step) / "state.json").unlink()
    collect(tmp_path, keep=1)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ConfigError, match="keep = 0"):
        collect(tmp_path, keep=0)


def test_sweep_spares_what_is_being_written(tmp_path: Path) -> None:
    (tmp_path / ".tmp-left").mkdir()
    (tmp_path / ".tmp-left" / "weights").write_bytes(b"1")
    (tmp_path / ".tmp-file").write_bytes(b"1")
    with publishing(tmp_path / "step-00000001") as folder:
        (folder / "weights").write_bytes(b"1")
        collect(tmp_path, keep=1)
        assert temporaries(tmp_path) == [folder]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    target = make(tmp_path, 1)
    with pytest.raises(OutputError, match="exists already"), publishing(target):
        pytest.fail("the body ran")
    assert verify(target) is None
    path = tmp_path / "out.html"
    write_atomic(path, b"one")
    with pytest.raises(OutputError, match="exists"):
        write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    write_atomic(path, b"two", force=True)
    assert path.read_bytes() == b"two" and not temporaries(tmp_path)
    with pytest.raises(OutputError, match="not a regular file"):
        write_atomic(target, b"two", force=True)
    with pytest.raises(OutputError, match="cannot_write"):
        write_atomic(tmp_path / "absent" / "out.html", b"1")
    with pytest.raises(OutputError, match="cannot_write"), publishing(path / "inside"):
        pytest.fail("the body ran")


def test_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    weight = torch.randn(6, 4)
    tensors = {
        "model/embed": weight, "model/head": weight, "model/transposed": weight.t(),
        "ema/half": weight.bfloat16(), "optimizer/0.step": torch.tensor(7.0), "ids": torch.arange(5),
        "empty": torch.empty(0, 3),
    }  # fmt: skip
    with publishing(tmp_path / "step-00000001") as folder:
        save_state(folder, tensors, {"step": 7, "seconds": 0.1, "order": [3, 1]})
    loaded, state = load_state(tmp_path / "step-00000001")
    assert state == {"step": 7, "seconds": 0.1, "order": [3, 1]} and loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], each) and loaded[name].dtype == each.dtype for name, each in tensors.items()
    )
    size = (tmp_path / "step-00000001" / "state.safetensors").stat().st_size
    assert size < 2 * weight.nbytes + weight.nbytes // 2 + 1000
    (tmp_path / "step-00000001" / "state.json").write_text("[]")
    with pytest.raises(ModelError, match="step-00000001"):
        load_state(tmp_path / "step-00000001")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_never_saved(tmp_path: Path, value: float) -> None:
    with pytest.raises(DataError, match="model/a"), publishing(tmp_path / "step-00000001") as folder:
        save_state(folder, {"model/a": torch.tensor([1.0, value])}, {})
    assert not list(tmp_path.iterdir())


class Journal:
    """What has reached the disk, as far as fsync tells, and every rename with the state it found."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.synced: dict[str, int] = {}
        self.events: list[str] = []
        for name in ("rename", "replace", "link"):
            patch.setattr(os, name, self.moving(getattr(os, name)))
        real = os.fsync

        def fsync(handle: int) -> None:
            path = os.readlink(f"/proc/self/fd/{handle}")
            real(handle)
            self.synced[path] = self.state(Path(path))
            self.events.append(f"sync {path}")

        patch.setattr(os, "fsync", fsync)

    @staticmethod
    def state(path: Path) -> int:
        """Bytes of a file, entries of a folder."""
        return len(list(path.iterdir())) if path.is_dir() else path.stat().st_size

    def moving(self, call: Callable[..., None]) -> Callable[..., None]:
        def moved(source: Path, target: Path) -> None:
            for path in [source, *source.rglob("*")]:
                assert self.synced.get(str(path)) == self.state(path), f"{path} may be lost"
            call(source, target)
            self.events.append(f"move {target}")

        return moved


def test_everything_is_on_the_disk_before_it_is_visible(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        journal = Journal(patch)
        target = make(tmp_path, 1)
        assert journal.events[-2:] == [f"move {target}", f"sync {tmp_path}"]
        assert len(journal.events) == 7, "three files, two folders, the rename, the parent"
        for force in (False, True):
            write_atomic(tmp_path / "page.html", b"1", force)
            assert journal.events[-2:] == [f"move {tmp_path / 'page.html'}", f"sync {tmp_path}"]


@pytest.mark.parametrize("make", [temporary_file, temporary_folder])
def test_what_is_begun_is_not_swept_away_before_it_is_locked(
    make: Callable[[Path], tuple[Path, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = fcntl.flock, list[int]()

    def late(handle: int, how: int) -> None:
        # Another process sweeps just when this one has made its first, and has not locked it yet.
        calls.append(handle)
        if len(calls) == 1:
            sweep(tmp_path)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    path, handle = make(tmp_path)
    assert len(calls) == 3 and [*tmp_path.iterdir()] == [path]
    sweep(tmp_path)
    assert path.exists()
    os.close(handle)
    sweep(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_files_of_two_writers_survive_one_another(tmp_path: Path) -> None:
    def write(name: str) -> None:
        for number in range(60):
            publish.write_group([(tmp_path / f"{name}{number}", b"x" * 10)])
            sweep(tmp_path)

    writers = [multiprocessing.get_context("fork").Process(target=write, args=(name,)) for name in "ab"]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert [each.exitcode for each in writers] == [0, 0] and len([*tmp_path.iterdir()]) == 120
