"""Folders and files that appear whole or not at all: temporary name, fsync, sha256 manifest, rename, fsync.

A checkpoint is safetensors and JSON, never a pickle. POSIX only (flock, fsync of folders).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from cm3kit.manifests import unnamed
from cm3kit.targets import refuse_existing
from cm3kit.temporaries import PREFIX, sweep, temporary_file, temporary_folder
from cm3kit_tokenizers.errors import ConfigError, DataError, ModelError, OutputError

# Workers that only handle pages publish too: torch is imported where tensors are written.
if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
# What JSON of another shape than ours ends in.
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
TENSORS = "state.safetensors"
STATE = "state.json"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP,
}  # fmt: skip

Warn = Callable[[str], None]


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, and turn it into `target` if the body succeeds.

    Every file is fsynced and listed in `manifest.json` with its size and sha256 before the rename;
    if anything fails, Ctrl-C included, the temporary folder is removed.

    Raises:
        OutputError: `target` exists (`exists`), the disk is full (`no_space`), or it cannot be written.
    """
    temporary, lock = target.parent, -1
    try:
        refuse_existing(target)
        make_folder(target.parent)
        temporary, lock = temporary_folder(target.parent)
        yield temporary
        _seal(temporary)
        refuse_existing(target)
        os.rename(temporary, target)
        _sync(target.parent)
    except BaseException as error:
        if lock >= 0:
            shutil.rmtree(temporary, ignore_errors=True)
        explained = _explain(error, target)
        if explained is error:
            raise
        raise explained from error
    finally:
        if lock >= 0:
            os.close(lock)


def make_folder(folder: Path) -> None:
    """A folder, and those above it, whose names are synced too: what is synced in it would go with its name."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        _sync(each.parent)


def verify(folder: Path) -> str | None:
    """None if every file of the manifest has its size and sha256, else one line saying what is wrong."""
    try:
        raw = (folder / MANIFEST).read_bytes()
        listed = json.loads(raw)
        if raw != _manifest_bytes(listed):
            return f"{folder}: {MANIFEST} is damaged"
        for name, entry in listed.items():
            path = folder / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                return f"{folder}: {MANIFEST} names {name!r}, which is outside the folder"
            if (size := path.stat().st_size) != entry["size"]:
                return f"{path} has {size} bytes, expected {entry['size']}"
            if _sha256(path) != entry["sha256"]:
                return f"{path} is damaged: its sha256 is not the manifest's"
        return unnamed(folder, {*listed, MANIFEST})
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"
    except MALFORMED:
        return f"{folder}: {MANIFEST} is damaged"


def newest(run: Path, prefix: str = "step-", *, warn: Warn) -> Path | None:
    """The newest checkpoint of `run` that verifies, or None; `warn` hears of each newer one that does not."""
    for folder in _checkpoints(run, prefix):
        if (wrong := verify(folder)) is None:
            return folder
        warn(f"skipping a damaged checkpoint, using the one before it: {wrong}")
    return None


def collect(run: Path, keep: int, prefix: str = "step-", spare: Collection[str] = ()) -> None:
    """Remove all but the `keep` newest checkpoints, and temporary folders whose writer is gone.

    The newest checkpoint that verifies always stays, and so do those that `spare` names. What cannot be removed is
    left alone.
    """
    if keep < 1:
        raise ConfigError(f"keep = {keep}: at least 1 checkpoint has to stay.", code="bad_value")
    found = _checkpoints(run, prefix)
    whole = next((folder for folder in found if verify(folder) is None), None)
    for folder in found[keep:] if whole is not None else []:
        if folder != whole and folder.name not in spare:
            # Renamed first, so that a checkpoint half removed is never taken for one.
            with suppress(OSError):
                folder.rename(run / f"{PREFIX}{secrets.token_hex(8)}")
    sweep(run)


def write_atomic(path: Path, data: bytes, force: bool = False) -> None:
    """Write one file whole or not at all.

    Raises:
        OutputError: `path` exists and `force` is not set (`exists`), the disk is full (`no_space`), or it
            cannot be written (`cannot_write`); nothing is left behind.
    """
    temporary: Path | None = None
    try:
        if not force:
            refuse_existing(path)
        elif path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a regular file; choose another name.", code="cannot_write")
        temporary, handle = temporary_file(path.parent)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            _place(temporary, path, force)
        _sync(path.parent)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        explained = _explain(error, path, len(data))
        if explained is error:
            raise
        raise explained from error


def write_group(files: Sequence[tuple[Path, bytes]]) -> None:
    """Write files, each whole or not at all, over what is there; all are on the disk when it returns.

    Raises:
        OutputError: as `write_atomic`; some of the files may be there then.
    """
    open_files = []
    current, size = Path(), 0
    try:
        for path, data in files:
            current, size = path, len(data)
            temporary, handle = temporary_file(path.parent)
            file = open(handle, "wb")
            open_files.append((temporary, file, path))
            file.write(data)
            file.flush()
        for temporary, file, current in open_files:
            os.fsync(file.fileno())
            os.replace(temporary, current)
        for folder in sorted({path.parent for path, _ in files}):
            _sync(folder)
    except BaseException as error:
        explained = _explain(error, current, size)
        if explained is error:
            raise
        raise explained from error
    finally:
        for temporary, file, _ in open_files:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            with suppress(OSError):
                file.close()


def save_state(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors of any device and layout, and a JSON state, into `folder`; see `load_state`.

    Tensors that are one and the same (tied weights) are written once.

    Raises:
        DataError: a floating tensor holds a value that is not finite (`not_finite`).
    """
    import torch
    from safetensors.torch import save_file

    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(
                f"{name} holds values that are not finite; the checkpoint is not saved.", code="not_finite"
            )
        place = tensor.untyped_storage().data_ptr()
        view = (place, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and view in seen:
            aliases[name] = seen[view]
            continue
        kept[name] = (tensor.clone() if place in storages else tensor).detach().contiguous()
        seen[view] = name
        storages.add(place)
    save_file(kept, folder / TENSORS)
    text = json.dumps({"state": dict(state), "aliases": aliases}, allow_nan=False, indent=1)
    (folder / STATE).write_text(text, encoding="utf-8")


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and JSON state that `save_state` wrote; ModelError if they cannot be read."""
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(folder / TENSORS)
        saved = json.loads((folder / STATE).read_text(encoding="utf-8"))
        tensors |= {name: tensors[other] for name, other in saved["aliases"].items()}
        return tensors, dict(saved["state"])
    except (OSError, SafetensorError, *MALFORMED) as error:
        raise ModelError(
            f"{folder} cannot be read: {error}; use another checkpoint.", code="bad_checkpoint"
        ) from error


def _seal(folder: Path) -> None:
    """fsync every file, write the manifest, fsync it and every folder."""
    listed: dict[str, dict[str, object]] = {}
    folders = [folder]
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            folders.append(path)
        elif path != folder / MANIFEST:
            _sync(path)
            name = path.relative_to(folder).as_posix()
            listed[name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    with (folder / MANIFEST).open("wb") as file:
        file.write(_manifest_bytes(listed))
        file.flush()
        os.fsync(file.fileno())
    for each in reversed(folders):
        _sync(each)


def _manifest_bytes(listed: object) -> bytes:
    return json.dumps(listed, indent=1, sort_keys=True).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _place(temporary: Path, path: Path, force: bool) -> None:
    """Rename, without a moment in which another writer's file could be overwritten unless `force`."""
    if force:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        refuse_existing(path)
    except OSError as error:
        # Some file systems have no hard links.
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}:
            raise
        refuse_existing(path)
        os.rename(temporary, path)
    else:
        temporary.unlink()


def _checkpoints(run: Path, prefix: str) -> list[Path]:
    """Folders `prefix` + digits, newest first."""
    found = [(path.name.removeprefix(prefix), path) for path in run.glob(f"{prefix}*") if path.is_dir()]
    numbered = [(int(digits), path) for digits, path in found if re.fullmatch(r"[0-9]+", digits)]
    return [path for _, path in sorted(numbered, reverse=True)]


def _explain(error: BaseException, path: Path, size: int | None = None) -> BaseException:
    """The OutputError for a failure to write, or the error itself if it is of another sort."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError | RuntimeError) and (
        told := re.search(r"os error (\d+)", str(error))
    ):
        number = int(told[1])
    if number in _FULL:
        need = f" ({size} bytes are needed)" if size is not None else ""
        return OutputError(
            f"{path} is not written: the disk is full{need}; free some space or choose another folder.",
            code="no_space",
        )
    if number in _REFUSED or (isinstance(error, FileNotFoundError) and not path.parent.is_dir()):
        reason = os.strerror(number or errno.ENOENT)
        return OutputError(
            f"{path} cannot be written: {reason}; check the folder or choose another one.",
            code="cannot_write",
        )
    return error
