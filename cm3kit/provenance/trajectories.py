"""A trajectory as one file: how a canvas was filled, and what is needed to show it.

The file is a safetensors container without executable code. Its metadata hold `format`, `header` (JSON)
and `sha256` over header and tensors. The tensors are the flat canvas (`ids`, `guide`), one entry for each commit
(`commit_step`, `commit_kind`, `commit_stop`: end of its entries) and one for each position that it changed
(`position`, `id`, `logprob`, `score`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cm3kit.fill.folder import fingerprints
from cm3kit.publish import write_atomic
from cm3kit.types import Canvas, Commit, Flat, MaskSpan, SpanKind, Trajectory
from cm3kit_tokenizers.errors import Cm3kitError, DataError
from cm3kit_tokenizers.vocab import Vocab

if TYPE_CHECKING:
    from cm3kit.fill.kit import Kit

FORMAT, VERSION = "cm3kit-trajectory", 1
SUFFIX = ".traj.safetensors"
KINDS: tuple[Literal["write", "remask", "edit"], ...] = ("write", "remask", "edit")
COLUMNS = {
    "ids": "int64", "guide": "int64", "commit_step": "int64", "commit_kind": "uint8", "commit_stop": "int64",
    "position": "int64", "id": "int64", "logprob": "float64", "score": "float64",
}  # fmt: skip

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Record:
    """A trajectory with the meaning of its ids.

    Attributes:
        pieces: bytes of the text ids that occur.
        grid: rows and columns of a picture's codes.
        model: name of the model, and `sha256` of its files by their path in its folder.
        how: notes of the caller: prompt, seed, settings.
    """

    trajectory: Trajectory
    vocab: Vocab
    pieces: Mapping[int, bytes]
    grid: tuple[int, int]
    model: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)


def save_trajectory(
    path: Path, trajectory: Trajectory, kit: Kit, how: Mapping[str, Any] | None = None, force: bool = False
) -> Path:
    """Write a trajectory; by convention the name ends in `.traj.safetensors`.

    Args:
        kit: the model that produced it.
        how: `prompt`, `seed` and settings as JSON values; shown beside the animation.

    Raises:
        OutputError: the file exists and `force` is off (`exists`), or it cannot be written.
        ValueError: the commits contradict one another or the canvas.
    """
    write_atomic(path, encode_trajectory(record_of(trajectory, kit, how)), force)
    return path


def load_trajectory(path: Path) -> Record:
    """Read a trajectory exactly.

    Raises:
        DataError: the file does not exist (`no_file`), cannot be read (`unreadable_file`), or is not a trajectory,
            is damaged, or is of another version (`bad_data`).
    """
    try:
        header, arrays = _open(path)
        return _record(header, arrays)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path.", code="no_file") from None
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{path} cannot be read: {reason}; give a {SUFFIX} file.", code="unreadable_file"
        ) from None
    except (
        SafetensorError, Cm3kitError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError,
        OverflowError,
    ) as error:  # fmt: skip
        line = " ".join(str(error.args[0] if error.args else error).split())[:160]
        raise DataError(
            f"{path} is not a valid trajectory of this version: {line}; write it again with --traj.",
            code="bad_data",
        ) from error


def record_of(trajectory: Trajectory, kit: Kit, how: Mapping[str, Any] | None = None) -> Record:
    """A trajectory with its model's data on the ids."""
    start = kit.vocab.text.start
    pieces = {id: kit.text.pieces[id - start] for id in sorted(_text_ids(trajectory, kit.vocab))}
    folder, grid = kit.parts.folder, kit.image.grid
    return Record(trajectory, kit.vocab, pieces, grid, kit.parts.name, _hashes(folder), dict(how or {}))


def _hashes(folder: Path) -> dict[str, str]:
    """`fingerprints`, cached for all trajectories of a model."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stands = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return dict(_hashed(folder, stands))


@lru_cache(maxsize=4)
def _hashed(folder: Path, stands: tuple[tuple[str, int, int], ...]) -> Mapping[str, str]:
    return fingerprints(folder)


def encode_trajectory(record: Record) -> bytes:
    """The bytes of the file.

    Raises:
        ValueError: the commits contradict one another or the canvas.
    """
    for _ in replay(record.trajectory):
        pass
    canvas, mask = record.trajectory.canvas, record.vocab.mask
    flat = canvas.flatten(mask)
    arrays = _arrays(record.trajectory, flat, mask)
    header = json.dumps(
        {
            "version": VERSION,
            "seed": canvas.seed,
            "stretches": [
                {
                    "kind": span.kind,
                    "start": where.start,
                    "stop": where.stop,
                    "padded": not span.exact,
                    "gap": span.gap,
                    "part": span.part,
                }
                for span, where in zip(canvas.spans, flat.ranges, strict=True)
            ],
            "vocab": record.vocab.to_dict(),
            # One character per byte, as pieces of byte-level BPE need not be valid UTF-8.
            "pieces": {str(id): piece.decode("latin-1") for id, piece in record.pieces.items()},
            "grid": list(record.grid),
            "model": record.model,
            "sha256": dict(record.sha256),
            "how": dict(record.how),
        },
        default=str,
    )
    return save(arrays, {"format": FORMAT, "header": header, "sha256": _digest(header, arrays)})


def replay(trajectory: Trajectory) -> Iterator[list[int | None]]:
    """The flat canvas before and after each commit, None at masked positions. The same list is modified and yielded.

    Raises:
        ValueError: a commit changes a position outside the spans or a position twice, writes a position that is not
            masked, or remasks or edits one that is.
    """
    flat = trajectory.canvas.flatten(-1)
    state: list[int | None] = list(flat.ids)
    slots = {place for each in flat.ranges for place in each}
    for place in slots:
        state[place] = None
    yield state
    for number, commit in enumerate(trajectory.commits):
        _apply(commit, state, slots, f"commit {number}")
        yield state


def _apply(commit: Commit, state: list[int | None], slots: set[int], where: str) -> None:
    counts = {len(commit.positions), len(commit.ids), len(commit.logprobs), len(commit.scores)}
    if len(counts) != 1 or len({*commit.positions}) != len(commit.positions):
        raise ValueError(f"{where} lists {sorted(counts)} values, or a position twice")
    for place, id in zip(commit.positions, commit.ids, strict=True):
        if place not in slots:
            raise ValueError(f"{where} changes position {place}, which is outside the masked spans")
        if (state[place] is None) != (commit.kind == "write"):
            raise ValueError(
                f"{where} is a {commit.kind} at position {place}, which is {_standing(state[place])}"
            )
        if commit.kind == "remask" and state[place] != id:
            raise ValueError(
                f"{where} removes {id} from position {place}, which is {_standing(state[place])}"
            )
        state[place] = None if commit.kind == "remask" else id


def _standing(id: int | None) -> str:
    return "masked" if id is None else f"written with {id}"


def _arrays(trajectory: Trajectory, flat: Flat, mask: int) -> Arrays:
    guides, commits = trajectory.canvas.guides, trajectory.commits
    columns: dict[str, Any] = {
        "ids": flat.ids,
        "guide": guides[0].flatten(mask).ids if guides else (),
        "commit_step": [each.step for each in commits],
        "commit_kind": [KINDS.index(each.kind) for each in commits],
        "commit_stop": np.cumsum([len(each.positions) for each in commits]),
        "position": [place for each in commits for place in each.positions],
        "id": [id for each in commits for id in each.ids],
        "logprob": [logprob for each in commits for logprob in each.logprobs],
        "score": [score for each in commits for score in each.scores],
    }
    return {name: np.array(columns[name], dtype) for name, dtype in COLUMNS.items()}


def _digest(header: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(header.encode())
    for name in COLUMNS:
        digest.update(f"\n{name}:".encode() + arrays[name].tobytes())
    return digest.hexdigest()


def _open(path: Path) -> tuple[dict[str, Any], Arrays]:
    path.open("rb").close()  # safetensors' own errors do not distinguish a missing file from a folder
    with safe_open(path, "np") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        arrays = {name: file.get_tensor(name) for name in COLUMNS}
    for name, dtype in COLUMNS.items():
        if arrays[name].dtype != dtype or arrays[name].ndim != 1:
            raise ValueError(f"the tensor {name} is {arrays[name].dtype} of {arrays[name].ndim} dimensions")
    header: dict[str, Any] = json.loads(metadata["header"])
    if header["version"] != VERSION:
        raise ValueError(f"it is of version {header['version']}, and this program reads version {VERSION}")
    if metadata["sha256"] != _digest(metadata["header"], arrays):
        raise ValueError("its sha256 does not match")
    return header, arrays


def _record(header: dict[str, Any], arrays: Arrays) -> Record:
    spans = [
        (
            range(each["start"], each["stop"]),
            MaskSpan(each["kind"], 0, 0, not each["padded"], gap=each["gap"], part=each["part"]),
        )
        for each in header["stretches"]
    ]
    if any(each.kind not in get_args(SpanKind) for _, each in spans):
        raise ValueError("the kind of a span is unknown")
    ids, guide = arrays["ids"].tolist(), arrays["guide"].tolist()
    canvas = Canvas.unflatten(ids, spans, [guide] if guide else [], header["seed"])
    trajectory = Trajectory(canvas, tuple(_commits(arrays)))
    rows, columns = header["grid"]
    record = Record(
        trajectory,
        Vocab.from_dict(header["vocab"]),
        {int(id): piece.encode("latin-1") for id, piece in header["pieces"].items()},
        (int(rows), int(columns)),
        header["model"],
        header["sha256"],
        header["how"],
    )
    if missing := _text_ids(trajectory, record.vocab) - record.pieces.keys():
        raise ValueError(f"the bytes of text id {min(missing)} are missing")
    for _ in replay(trajectory):
        pass
    return record


def _text_ids(trajectory: Trajectory, vocab: Vocab) -> set[int]:
    canvas = trajectory.canvas
    given = {id for each in (canvas, *canvas.guides) for id in each.ids}
    seen = {*given, *(id for each in trajectory.commits for id in each.ids)}
    return {id for id in seen if id in vocab.text}


def _commits(arrays: Arrays) -> Iterator[Commit]:
    stops = [0, *arrays["commit_stop"].tolist()]
    columns = [arrays[name].tolist() for name in ("position", "id", "logprob", "score")]
    steps, kinds = arrays["commit_step"].tolist(), arrays["commit_kind"].tolist()
    if sorted(stops) != stops or {len(each) for each in columns} != {stops[-1]}:
        raise ValueError("its commits do not match their entries")
    for step, kind, (start, stop) in zip(steps, kinds, pairwise(stops), strict=True):
        positions, ids, logprobs, scores = (tuple(each[start:stop]) for each in columns)
        yield Commit(step, positions, ids, logprobs, scores, KINDS[kind])
