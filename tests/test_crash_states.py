"""Every state that a crash can leave on disk while checkpoints are written, and every part that a checkpoint needs.

The first half records what the publisher asks of the file system, and rebuilds the disk as it may be after each
call: data that were not synced kept or dropped, names that were not synced kept or dropped (after ALICE, OSDI 2014).
The second half takes one part at a time out of a checkpoint and sees that the run that goes on is another.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from cm3kit import publish
from cm3kit.publish import collect, load_state, newest, publishing, save_state
from cm3kit.temporaries import sweep
from cm3kit.training.loop import LoopSettings, train

torch.set_num_threads(1)
STEPS = 6


@dataclass
class File:
    """What has been written to a file, and what of it has been synced."""

    now: bytes = b""
    synced: bytes = b""


@dataclass
class Folder:
    """The entries of a folder, and those that have been synced."""

    now: dict[str, File | Folder] = field(default_factory=dict)
    synced: dict[str, File | Folder] = field(default_factory=dict)


class Disk:
    """Follows a folder of the real disk, call by call, and knows what a crash may leave of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Folder()
        self.states: list[tuple[dict[str, bytes | None], int]] = []
        self.acknowledged = 0

    def at(self, path: Path) -> Folder | File:
        found: Folder | File = self.top
        for part in path.relative_to(self.root).parts:
            assert isinstance(found, Folder)
            found = found.now[part]
        return found

    def parent(self, path: Path) -> Folder:
        found = self.at(path.parent)
        assert isinstance(found, Folder)
        return found

    def look(self, path: Path | None = None) -> None:
        """Take in what has been written since the last call: new files, and new content of old ones."""
        for each in sorted((path or self.root).rglob("*")):
            inside = self.parent(each).now
            if each.is_dir():
                inside.setdefault(each.name, Folder())
            else:
                file = inside.setdefault(each.name, File())
                assert isinstance(file, File)
                file.now = each.read_bytes()

    def sync(self, path: Path) -> None:
        found = self.at(path)
        if isinstance(found, File):
            found.synced = found.now
        else:
            found.synced = dict(found.now)

    def move(self, old: Path, new: Path) -> None:
        self.parent(new).now[new.name] = self.parent(old).now.pop(old.name)

    def remove(self, path: Path) -> None:
        self.parent(path).now.pop(path.name, None)

    def remember(self) -> None:
        """Note the four disks that a crash may leave at this moment."""
        for data in (False, True):
            for names in (False, True):
                self.states.append((dict(_flat(self.top, "", data, names)), self.acknowledged))


def _flat(folder: Folder, prefix: str, data: bool, names: bool) -> Iterator[tuple[str, bytes | None]]:
    for name, each in (folder.now if names else folder.synced).items():
        if isinstance(each, File):
            yield prefix + name, each.now if data else each.synced
        else:
            yield prefix + name, None
            yield from _flat(each, f"{prefix}{name}/", data, names)


@contextmanager
def recorded(disk: Disk, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have every call that changes names, and every sync, noted as it is made."""
    real = {name: getattr(os, name) for name in ("fsync", "rename", "mkdir")}
    real_rmtree = shutil.rmtree

    def known(path: Any) -> Path | None:
        found = Path(path)
        return found if disk.root in found.parents or found == disk.root else None

    def noting(name: str, effect: Callable[..., None]) -> Callable[..., Any]:
        def call(*args: Any, **rest: Any) -> Any:
            named = (
                [os.readlink(f"/proc/self/fd/{args[0]}")]
                if name == "fsync"
                else args[: 1 + (name == "rename")]
            )
            paths = [known(each) for each in named]
            disk.look()
            disk.remember()
            out = real[name](*args, **rest)
            if paths[0] is not None:
                effect(*[path for path in paths if path is not None])
                disk.remember()
            return out

        return call

    def made(path: Path) -> None:
        disk.parent(path).now.setdefault(path.name, Folder())

    def rmtree(path: Any, *args: Any, **rest: Any) -> None:
        if (found := known(path)) is not None and found.exists():
            disk.look()
            # A folder goes file by file.
            for each in sorted(found.rglob("*"), reverse=True):
                disk.remove(each)
                disk.remember()
            disk.remove(found)
        real_rmtree(path, *args, **rest)

    with patch.context() as inner:
        inner.setattr(os, "fsync", noting("fsync", disk.sync))
        inner.setattr(os, "rename", noting("rename", disk.move))
        inner.setattr(os, "mkdir", noting("mkdir", made))
        inner.setattr(shutil, "rmtree", rmtree)
        yield


def save(run: Path, step: int, keep: int = 2) -> None:
    with publishing(run / f"step-{step:08d}") as folder:
        save_state(folder, {"a": torch.full((3,), float(step))}, {"step": step})
    collect(run, keep)


def record(root: Path, patch: pytest.MonkeyPatch, write: Callable[[Path, int], None]) -> Disk:
    root.mkdir()
    disk = Disk(root)
    with recorded(disk, patch):
        for step in range(1, STEPS + 1):
            write(root / "runs" / "run", step)
            disk.acknowledged = step
            disk.remember()
    return disk


def losses(disk: Disk, place: Path) -> list[int]:
    """Of all disks that a crash may have left, those that have lost a step that was said to be saved."""
    lost, seen = [], dict[str, int]()
    for number, (files, acknowledged) in enumerate(disk.states):
        key = repr(sorted(files.items()))
        if key not in seen:
            shutil.rmtree(place, ignore_errors=True)
            for name, content in files.items():
                path = place / name
                if content is None:
                    path.mkdir(parents=True, exist_ok=True)
                else:
                    path.write_bytes(content)
            seen[key] = recovered(place / "runs" / "run")
        if seen[key] < acknowledged:
            lost.append(number)
    return lost


def recovered(run: Path) -> int:
    """The step that a run goes on from, whose checkpoint must be as it was written; 0 if there is none."""
    sweep(run)
    found = newest(run, warn=lambda line: None)
    if found is None:
        return 0
    tensors, state = load_state(found)
    assert found.name == f"step-{state['step']:08d}"
    assert torch.equal(tensors["a"], torch.full((3,), float(state["step"])))
    return int(state["step"])


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_no_crash_loses_a_step_that_was_said_to_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    disk = record(tmp_path / "disk", monkeypatch, lambda run, step: save(run, step, keep))
    assert len(disk.states) > 328
    assert losses(disk, tmp_path / "again") == []


def no_file_sync(patch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    real = publish._sync
    patch.setattr(publish, "_sync", lambda path: None if path.is_file() else real(path))
    return save


def no_folder_sync(patch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    real = publish._sync
    patch.setattr(publish, "_sync", lambda path: None if path.is_dir() else real(path))
    return save


def renamed_before_synced(patch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    def write(run: Path, step: int) -> None:
        temporary = run / ".tmp-x"
        os.makedirs(temporary)
        save_state(temporary, {"a": torch.full((3,), float(step))}, {"step": step})
        os.rename(temporary, run / f"step-{step:08d}")
        publish._sync(run)
        collect(run, keep=1)
        publish._seal(run / f"step-{step:08d}")

    return write


def collected_before_published(patch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    def write(run: Path, step: int) -> None:
        for old in run.glob("step-*"):
            shutil.rmtree(old)
        save(run, step)

    return write


def manifest_not_synced(patch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    real = publish._seal

    def seal(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as inner:
            sync = os.fsync

            def fsync(handle: int) -> None:
                if not os.readlink(f"/proc/self/fd/{handle}").endswith("manifest.json"):
                    sync(handle)

            inner.setattr(os, "fsync", fsync)
            real(folder)

    patch.setattr(publish, "_seal", seal)
    return save


@pytest.mark.parametrize(
    "mutant",
    [no_file_sync, no_folder_sync, renamed_before_synced, collected_before_published, manifest_not_synced],
)
def test_a_publisher_that_leaves_something_out_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: Callable[..., Callable[[Path, int], None]]
) -> None:
    disk = record(tmp_path / "disk", monkeypatch, mutant(monkeypatch))
    monkeypatch.undo()
    assert losses(disk, tmp_path / "again")


LOOP = LoopSettings(
    steps=12, batch_size=3, precision="fp32", save_every=4, preview_every=100, log_every=1, ema=0.9, keep=2,
    weight_decay=0.1,
)  # fmt: skip


class Noisy(nn.Module):
    """y = ax with dropout and a count that scales it, so that every part of a checkpoint makes a difference."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x_BD: Tensor) -> Tensor:
        self.count += 1
        return nn.functional.dropout(x_BD, 0.5, self.training) @ self.a.T * (1 + self.count / 10)


class Task:
    """A task of a few numbers; steps that are `bad` are not finite the first time, and three of them halve the rate."""

    def __init__(self, *bad: int) -> None:
        self.model: nn.Module = Noisy()
        self.bad = set(bad)

    def batch(self, rng: Generator, size: int) -> Tensor:
        return torch.randn(size, 4, generator=rng)

    def loss(
        self, model: nn.Module, batch: Tensor, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        loss = (model(batch) - torch.randn(3, generator=rng)).square().mean()
        if step in self.bad:
            self.bad.remove(step)
            loss = loss * float("nan")
        return loss, {}

    def preview(self, model: nn.Module, path: Path) -> None:
        path.with_suffix(".txt").write_text("")

    def export(self, model: nn.Module, folder: Path) -> None:
        (folder / "result.json").write_text(json.dumps(model.a.tolist()))  # type: ignore[union-attr,operator]


def go_on(run: Path) -> tuple[dict[str, bytes], list[Any], bytes]:
    """Finish a run, and tell its last checkpoint, its losses and its result."""
    train(Task(), LOOP, run, device="cpu")
    found = newest(run, warn=pytest.fail)
    assert found is not None
    tensors = {name: each.numpy().tobytes() for name, each in load_state(found)[0].items()}
    logged = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    return tensors, logged, (run / "final/result.json").read_bytes()


def half_done(run: Path) -> None:
    """A run stopped after step 9, which has been back to step 4 and so has half its rate."""
    told: list[str] = []
    train(Task(5, 6, 7), LOOP, run, device="cpu", max_steps=9, warn=told.append)
    assert len(told) == 1 and "going back to step-00000004 with 0.5" in told[0]


def without(run: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> None:
    """Write the newest checkpoint again, with something of it missing."""
    folder = run / "step-00000009"
    tensors, state = load_state(folder)
    tensors = {name: each.clone() for name, each in tensors.items()}
    change(tensors, state)
    shutil.rmtree(folder)
    with publishing(folder) as again:
        save_state(again, tensors, state)


def zero(*names: str) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        for name in names:
            tensors[name].zero_()

    return change


def forget(name: str, value: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        assert state[name] != value
        state[name] = value

    return change


PARTS: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], None]] = {
    "weights": lambda tensors, state: tensors.update({"model/a": torch.linspace(-1, 1, 12).reshape(3, 4)}),
    "counts": zero("model/count"),
    "averages": lambda tensors, state: tensors.update({"ema/a": tensors["model/a"].clone()}),
    "first moments": zero("optimizer/0.exp_avg"),
    "second moments": zero("optimizer/0.exp_avg_sq"),
    "steps of the optimizer": zero("optimizer/0.step"),
    "place in the data, random numbers and schedule": forget("step", 8),
    "share of the rate": forget("scale", 1.0),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = tmp_path_factory.mktemp("straight") / "run"
    train(Task(5, 6, 7), LOOP, run, device="cpu")
    return go_on(run)


@pytest.fixture(scope="module")
def untroubled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return go_on(tmp_path_factory.mktemp("untroubled") / "run")


def test_a_whole_checkpoint_goes_on_bit_by_bit(tmp_path: Path, uninterrupted: Any) -> None:
    half_done(tmp_path)
    without(tmp_path, lambda tensors, state: None)
    assert go_on(tmp_path) == uninterrupted


@pytest.mark.parametrize("part", list(PARTS))
def test_a_checkpoint_without_one_part_does_not(tmp_path: Path, uninterrupted: Any, part: str) -> None:
    half_done(tmp_path)
    without(tmp_path, PARTS[part])
    assert go_on(tmp_path) != uninterrupted


@pytest.mark.parametrize("step", range(1, 12))
def test_a_run_goes_on_bit_by_bit_from_every_step(tmp_path: Path, untroubled: Any, step: int) -> None:
    # What the process drew before is of no matter: nothing comes from a global generator.
    train(Task(), LOOP, tmp_path, device="cpu", max_steps=step)
    torch.rand(step)
    assert go_on(tmp_path) == untroubled
